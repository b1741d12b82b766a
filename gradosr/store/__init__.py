"""Objects by URI, in local folders and S3-compatible stores: list, stat, read, open, write, move.

A URI is a local path (relative ones too), file:///PATH or s3://BUCKET/KEY, verbatim: nothing is percent-encoded.
"""

import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol

from gradosr.config import S3Settings
from gradosr.errors import ConfigError, StoreError


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object as it was listed."""

    uri: str
    size: int
    """Bytes."""
    version: str
    """ETag, or size and modification time of a local file."""
    modified: int | None = field(default=None, compare=False)
    """Seconds since 1970; None where the store does not tell."""


class Backend(Protocol):
    """What a kind of store offers; every method raises the StoreErrors of gradosr.errors, nothing foreign."""

    def list(self, uri: str) -> Iterator[StoredObject]:
        """Every object whose URI begins with `uri`, in code point order of the URI; a folder ends in `/` (see `join`).

        A missing local folder and a missing bucket are NotFound; an S3 prefix that nothing begins with is empty.
        """

    def stat(self, uri: str) -> StoredObject:
        """The object as it is now; NotFound where there is none."""

    def read(self, uri: str) -> bytes:
        """The whole object, for those that fit in memory."""

    def open(self, stored: StoredObject) -> BinaryIO:
        """A buffered, seekable reader of exactly the listed version; to be closed, and for one thread at a time.

        Opening or reading raises ObjectChanged once the object is replaced or gone.
        """

    def write(self, uri: str, body: bytes | BinaryIO, *, if_absent: bool = False) -> bool:
        """Writes all of `body` (a file from its beginning) or nothing; folders come into being as needed.

        With `if_absent` the first writer counts: False says that the object was there already. It may also be this
        very call that wrote it, when the store's first answer was lost. A store that cannot do so writes plainly.
        """

    def exchange(self, uri: str, body: bytes, version: str | None) -> str | None:
        """Writes if the object still is of `version` (none: is not there yet); its new version, or None when it is not.

        None may also come because this very call wrote it, when the store's first answer was lost: put something of
        your own into the body and look. Raises NoConditionalWrites where the store refuses the condition; whether it
        heeds one, only an exchange that must be refused can tell.
        """

    def reach(self, uri: str) -> None:
        """Raises StoreError, sooner than other methods, when the server of `uri` cannot be reached: before work starts.

        Once raised it is raised again without asking, so that a wrong address costs its seconds once.
        """

    def move(self, source: str, target: str) -> None:
        """Renames an object, replacing `target`. On S3 a copy (objects up to 5 GiB) and a delete, not one step."""


_AWS = S3Settings()
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


class Store:
    """The backend of each URI by its scheme and, for s3://, by the longest prefix in `stores`; thread-safe.

    Cheap to build: connections are made when first used. Send the settings to other processes, not the store.
    """

    def __init__(self, store: S3Settings = _AWS, stores: Mapping[str, S3Settings] | None = None) -> None:
        self._default = store
        self._by_prefix = sorted((stores or {}).items(), key=lambda item: len(item[0]), reverse=True)
        self._backends: dict[S3Settings | None, Backend] = {}
        self._lock = threading.Lock()

    def list(self, uri: str) -> Iterator[StoredObject]:
        """See Backend.list."""
        return self._backend(uri).list(uri)

    def stat(self, uri: str) -> StoredObject:
        """See Backend.stat."""
        return self._backend(uri).stat(uri)

    def read(self, uri: str) -> bytes:
        """See Backend.read."""
        return self._backend(uri).read(uri)

    def open(self, stored: StoredObject) -> BinaryIO:
        """See Backend.open."""
        return self._backend(stored.uri).open(stored)

    def write(self, uri: str, body: bytes | BinaryIO, *, if_absent: bool = False) -> bool:
        """See Backend.write."""
        return self._backend(uri).write(uri, body, if_absent=if_absent)

    def exchange(self, uri: str, body: bytes, version: str | None) -> str | None:
        """See Backend.exchange."""
        return self._backend(uri).exchange(uri, body, version)

    def reach(self, uri: str) -> None:
        """See Backend.reach."""
        self._backend(uri).reach(uri)

    def move(self, source: str, target: str) -> None:
        """See Backend.move; both must lie in one store."""
        backend = self._backend(source)
        if backend is not self._backend(target):
            raise StoreError(f"{source}: cannot be moved into another store: {target}")
        backend.move(source, target)

    def _backend(self, uri: str) -> Backend:
        settings = self._s3_settings(uri) if is_s3(uri) else None
        with self._lock:
            if settings not in self._backends:
                self._backends[settings] = _connect(settings)
            return self._backends[settings]

    def _s3_settings(self, uri: str) -> S3Settings:
        # Whole steps of the path only: the settings (and so the server) of s3://data are not those of s3://data-2.
        return next(
            (found for prefix, found in self._by_prefix if f"{uri}/".startswith(join(prefix, ""))), self._default
        )


def is_s3(uri: str) -> bool:
    """Whether the URI lies in an S3 store, not in a local folder. Raises ConfigError for any other scheme."""
    match = _SCHEME.match(uri)
    if match is None or uri.startswith("file:///"):
        return False
    if match[1] != "s3":
        raise ConfigError(f"{uri}: not a local path, file:///PATH or s3://BUCKET/KEY")
    return True


def join(base_uri: str, name: str) -> str:
    """The URI of `name` below the folder `base_uri`; with an empty name the folder itself, ending in `/`."""
    return f"{base_uri}{name}" if not base_uri or base_uri.endswith("/") else f"{base_uri}/{name}"


def _connect(settings: S3Settings | None) -> Backend:
    # Imported when needed: boto3 takes a quarter of a second that a local job need not wait for.
    if settings is None:
        from gradosr.store.local import LocalBackend

        return LocalBackend()
    from gradosr.store.s3 import S3Backend

    return S3Backend(settings)
