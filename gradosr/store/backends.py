"""The contract of a backend, and the table of backends by URI scheme: one per file, one line each in BACKENDS."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import BinaryIO, Literal, NamedTuple, Protocol

from gradosr.config import S3Settings
from gradosr.errors import ConfigError


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object as it was listed."""

    uri: str
    size: int
    """Number of bytes."""
    version: str
    """Mark that changes whenever the object is replaced: an ETag, or size and modification time of a local file."""
    modified: int | None = field(default=None, compare=False)
    """Time of the last modification, in seconds since 1970; None where the store does not tell."""


class Backend(Protocol):
    """The operations of one kind of store. Every method raises the StoreErrors of gradosr.errors, nothing foreign."""

    def list(self, uri: str) -> Iterator[StoredObject]:
        """Yield every object whose URI begins with `uri`, in code point order; a folder ends in `/` (see `join`).

        A missing local folder and a missing bucket are NotFound; a prefix that nothing begins with is empty.
        """

    def folders(self, uri: str) -> Sequence[str]:
        """Return the names of the folders directly below the folder `uri`, which ends in `/`, in code point order.

        What lies in them is not listed, however much it is. A missing local folder and a missing bucket are NotFound.
        """

    def stat(self, uri: str) -> StoredObject:
        """Return the object as it is now. Raises NotFound where there is none."""

    def read(self, uri: str) -> bytes:
        """Return the whole object, for those that fit in memory."""

    def open(self, stored: StoredObject) -> BinaryIO:
        """Open a buffered, seekable reader of exactly the listed version; for one thread at a time, to be closed.

        Opening or reading raises ObjectChanged once the object is replaced or gone.
        """

    def write(self, uri: str, body: bytes | BinaryIO, *, if_absent: bool = False) -> bool:
        """Write all of `body` (a file from its beginning) or nothing; folders are created as needed.

        With `if_absent` the first writer wins: False says that the object was there already. It may also be this
        very call that wrote it, if the store's first answer was lost. A store that cannot do so writes plainly.
        """

    def exchange(self, uri: str, body: bytes, version: str | None) -> str | None:
        """Write if the object is still of `version` (None: does not exist yet); return its new version, else None.

        None may also mean that this very call wrote it and the store's first answer was lost: put something of your
        own into the body and look. Raises NoConditionalWrites where the store refuses the condition; whether it
        honours one, only an exchange that must be refused can tell.
        """

    def reach(self, uri: str) -> None:
        """Raise StoreError, sooner than other methods do, if the server of `uri` cannot be reached: before work starts.

        The same error is raised again without asking, so that a wrong address costs its seconds once.
        """

    def move(self, source: str, target: str) -> None:
        """Rename an object, replacing `target`. On S3 a copy (objects up to 5 GiB) and a delete, not one step."""


class Scheme(NamedTuple):
    """One URI scheme: the backend behind it, and the facts about it that the rest of the program asks for."""

    module: str
    """Module whose `connect(settings: S3Settings) -> Backend` makes the backend. Imported when first used: boto3 takes
    a quarter of a second that a local job need not wait for."""
    form: str
    """Form of its URIs, as messages give it."""
    seen_from: Literal["process", "machine", "everywhere"] = "everywhere"
    """Reach of its objects: this process alone, one machine (and others that mount its folders), or every machine."""
    buckets: bool = False
    """Whether objects lie in buckets, which must exist before anything is written; a folder need not."""

    @property
    def shared(self) -> bool:
        """Whether every machine reaches the same object by the same URI."""
        return self.seen_from == "everywhere"

    def connect(self, settings: S3Settings) -> Backend:
        """Make a backend; no connection is opened yet. Raises ConfigError for settings that cannot work."""
        backend: Backend = import_module(self.module).connect(settings)
        return backend


BACKENDS: dict[str, Scheme] = {
    "": Scheme("gradosr.store.local", "a local path", "machine"),
    "file": Scheme("gradosr.store.local", "file:///PATH", "machine"),
    "s3": Scheme("gradosr.store.s3", "s3://BUCKET/KEY", buckets=True),
    "gs": Scheme("gradosr.store.gs", "gs://BUCKET/KEY", buckets=True),
    "memory": Scheme("gradosr.store.memory", "memory://NAME/KEY", "process"),
}
"""Schemes by name; "" is a path without one."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def scheme_of(uri: str) -> Scheme:
    """Look up the scheme of a URI. Raises ConfigError for one that is not in BACKENDS, and for file://HOST."""
    match = _SCHEME.match(uri)
    name = match[1] if match else ""
    if name not in BACKENDS or (name == "file" and not uri.startswith("file:///")):
        *forms, last = (scheme.form for scheme in BACKENDS.values())
        raise ConfigError(f"{uri}: not {', '.join(forms)} or {last}")
    return BACKENDS[name]


def is_shared(uri: str) -> bool:
    """Tell whether every machine reaches the same object by this URI. Raises ConfigError as `scheme_of` does."""
    return scheme_of(uri).shared
