"""All errors that a user may see, each as one line that tells the problem, its place and a remedy.

GradosrError
├── ConfigError             the config or the command line is wrong
│   └── FingerprintMismatch the output folder belongs to a run with other settings
├── InputError              something named in the config cannot be used: missing, unreadable or unsuitable
│   ├── BundleError         a bundle is damaged, of another version, or names code that may not be loaded
│   ├── ClassifierError     an architecture, weights or a forward pass is unsuitable
│   ├── EmptyTable          a results folder's table has no parts, or none of those requested
│   └── StoreError          the store failed to do what was asked, after retries
│       ├── NotFound        the bucket, object or path does not exist
│       ├── AccessDenied    credentials are wrong, missing or expired, or a policy forbids access
│       ├── ObjectChanged   the object was replaced or removed after it was listed
│       └── NoConditionalWrites  the store cannot make a write fail if somebody else has written
├── ShardUnreadable         a shard's content cannot be read, now or later
├── MachineFault            this machine lacks memory, threads, files or disk, whatever the data
├── RunActive               the same run is already active
└── RunFailed               the run stopped or ended with failed shards; the same command resumes it

Errors of other libraries are converted to one of these at a single boundary each (`raise ... from error`). All of them
carry only a message, so they survive pickling between Ray processes. jobs/ turns them into exit codes.
"""

import errno
import re


class GradosrError(Exception):
    """Base class of all errors that are reported to the user in one line."""


class ConfigError(GradosrError):
    """An error in the config or on the command line."""


class FingerprintMismatch(ConfigError):
    """An output folder that belongs to a run with other settings."""


class InputError(GradosrError):
    """Something named in the config that cannot be used."""


class BundleError(InputError):
    """A bundle that is damaged, of another version, or names code that may not be loaded."""


class ClassifierError(InputError):
    """An unsuitable architecture, weights or forward pass."""


class EmptyTable(InputError):
    """A results folder whose table has no parts yet, or none of those requested."""


class StoreError(InputError):
    """A failure of the store to do what was asked, after retries."""


class NotFound(StoreError):
    """A bucket, object or path that does not exist."""


class AccessDenied(StoreError):
    """Wrong, missing or expired credentials, or a policy that forbids the request."""


class ObjectChanged(StoreError):
    """An object that was replaced or removed after it was listed."""


class NoConditionalWrites(StoreError):
    """A store that cannot make a write fail if somebody else has written."""


class ShardUnreadable(GradosrError):
    """A shard whose content cannot be read, now or later."""


class MachineFault(GradosrError):
    """A fault of this machine, never of the data: the shard fails, and the same command tries it again."""


class RunActive(GradosrError):
    """A run that is already active elsewhere."""


class RunFailed(GradosrError):
    """A run that stopped or ended with failed shards; the same command resumes it."""


_LACKING = (errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT)
_NO_MEMORY = re.compile(
    r"can(no|')t allocate|out of memory|insufficient memory|_STATUS_ALLOC_FAILED|can't start new thread", re.IGNORECASE
)
_NULL = re.compile(r"pointer is null|API call failed")  # what Rust got from Python instead of a new object


def machine_fault(error: BaseException) -> MachineFault | None:
    """Return the fault if an error tells what this machine lacks; None if it tells of the data, or of anything else.

    torch, CUDA, libjpeg and threading raise a plain RuntimeError, which is known by its text alone; extensions in Rust
    raise a PanicException, which is no Exception and cannot be imported.
    """
    if isinstance(error, MachineFault):
        return error
    lacking = isinstance(error, OSError) and error.errno in _LACKING
    told = isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error))
    panicked = type(error).__name__ == "PanicException" and _NULL.search(str(error))
    if not (isinstance(error, MemoryError) or lacking or told or panicked):
        return None
    return MachineFault(
        f"this machine is at fault, not the data: {first_line(error)}; try fewer workers or a larger one"
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has no message."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def system_reason(error: BaseException) -> str | None:
    """Return the operating system's reason behind an error (`connection refused`), or None if there is none."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror.lower()
        cause = cause.__cause__ or cause.__context__
    return None
