"""Every fault a user can be told in one line: what, where, what to do.

GradosrError
├── ConfigError             the config or the command line is wrong
│   └── FingerprintMismatch the output folder belongs to a run of other settings
├── InputError              something the config names cannot be used: missing, unreadable, unfit
│   ├── BundleError         a bundle that is damaged, of another version, or names what may not be loaded
│   ├── ClassifierError     an architecture, weights or forward pass that cannot serve
│   ├── EmptyTable          a results folder whose table has no parts, or none of those asked for
│   └── StoreError          the store did not do what was asked, after retries
│       ├── NotFound        no such bucket, object or path
│       ├── AccessDenied    wrong, missing or expired credentials, or a policy that forbids it
│       ├── ObjectChanged   the object was replaced or removed after it was listed
│       └── NoConditionalWrites  the store cannot write on the condition that nobody else did
├── ShardUnreadable         a verdict on a shard's content: nothing of it can be read, now or later
├── RunActive               the same run is already active
└── RunFailed               the run stopped or ended with failed shards; the same command resumes it

Foreign errors become one of these at one boundary each (`raise ... from error`). All carry one
message and nothing else, so they survive pickling between Ray processes. jobs/ turns them into exit codes.
"""


class GradosrError(Exception):
    """Anything a user can be told in one line."""


class ConfigError(GradosrError):
    """The config or the command line is wrong."""


class FingerprintMismatch(ConfigError):
    """The output folder belongs to a run of other settings."""


class InputError(GradosrError):
    """Something the config names cannot be used."""


class BundleError(InputError):
    """A bundle is damaged, of another version, or names what may not be loaded."""


class ClassifierError(InputError):
    """An architecture, its weights or its forward pass cannot serve."""


class EmptyTable(InputError):
    """A results folder whose table has no parts yet, or none of those asked for."""


class StoreError(InputError):
    """The store did not do what was asked, after retries."""


class NotFound(StoreError):
    """No such bucket, object or path."""


class AccessDenied(StoreError):
    """Wrong, missing or expired credentials, or a policy that forbids the request."""


class ObjectChanged(StoreError):
    """The object was replaced or removed after it was listed."""


class NoConditionalWrites(StoreError):
    """The store cannot write on the condition that nobody else did."""


class ShardUnreadable(GradosrError):
    """Nothing of the shard can be read, now or later."""


class RunActive(GradosrError):
    """The same run is already active."""


class RunFailed(GradosrError):
    """The run stopped or ended with failed shards; the same command resumes it."""


def first_line(error: BaseException) -> str:
    """What a foreign error says, in one line; its type where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def system_reason(error: BaseException) -> str | None:
    """The operating system's word for what lies behind an error (`connection refused`), if it has one."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror.lower()
        cause = cause.__cause__ or cause.__context__
    return None
