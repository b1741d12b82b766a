"""Objects by URI, in local folders, S3-compatible stores and memory: list, folders, stat, read, open, write, move.

A URI is a local path (relative ones too) or begins with a scheme of BACKENDS, such as s3://BUCKET/KEY. It is taken
verbatim: nothing is percent-encoded.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO

from gradosr.config import S3Settings
from gradosr.errors import NotFound, StoreError
from gradosr.store.backends import BACKENDS, Backend, Scheme, StoredObject, is_shared, scheme_of

__all__ = ["BACKENDS", "Backend", "Scheme", "Store", "StoredObject", "is_shared", "join", "scheme_of"]

_DEFAULTS = S3Settings()


class Store:
    """Every store at once: each URI goes to the backend of its scheme, with the settings of the longest prefix.

    Thread-safe and cheap to build: connections are made when first used. Send the settings to other processes, not
    the store.
    """

    def __init__(self, store: S3Settings = _DEFAULTS, stores: Mapping[str, S3Settings] | None = None) -> None:
        self._default = store
        self._by_prefix = sorted((stores or {}).items(), key=lambda item: len(item[0]), reverse=True)
        self._backends: dict[tuple[str, S3Settings], Backend] = {}
        self._lock = threading.Lock()

    def list(self, uri: str) -> Iterator[StoredObject]:
        return self._backend(uri).list(uri)

    def folders(self, uri: str) -> Sequence[str]:
        return self._backend(uri).folders(uri)

    def stat(self, uri: str) -> StoredObject:
        return self._backend(uri).stat(uri)

    def exists(self, uri: str) -> bool:
        """Tell whether there is an object at `uri`."""
        try:
            self.stat(uri)
        except NotFound:
            return False
        return True

    def read(self, uri: str) -> bytes:
        return self._backend(uri).read(uri)

    def open(self, stored: StoredObject) -> BinaryIO:
        return self._backend(stored.uri).open(stored)

    def write(self, uri: str, body: bytes | BinaryIO, *, if_absent: bool = False) -> bool:
        return self._backend(uri).write(uri, body, if_absent=if_absent)

    def exchange(self, uri: str, body: bytes, version: str | None) -> str | None:
        return self._backend(uri).exchange(uri, body, version)

    def reach(self, uri: str) -> None:
        self._backend(uri).reach(uri)

    def move(self, source: str, target: str) -> None:
        """Rename an object within one store, replacing `target`."""
        backend = self._backend(source)
        if backend is not self._backend(target):
            raise StoreError(f"{source}: cannot be moved into another store: {target}")
        backend.move(source, target)

    def _backend(self, uri: str) -> Backend:
        scheme, settings = scheme_of(uri), self._settings(uri)
        key = (scheme.module, settings)
        with self._lock:
            if key not in self._backends:
                self._backends[key] = scheme.connect(settings)
            return self._backends[key]

    def _settings(self, uri: str) -> S3Settings:
        # Whole steps of the path only: the settings (and so the server) of s3://data are not those of s3://data-2.
        return next(
            (found for prefix, found in self._by_prefix if f"{uri}/".startswith(join(prefix, ""))), self._default
        )


def join(base_uri: str, name: str) -> str:
    """Return the URI of `name` below the folder `base_uri`; with an empty name the folder itself, ending in `/`."""
    return f"{base_uri}{name}" if not base_uri or base_uri.endswith("/") else f"{base_uri}/{name}"
