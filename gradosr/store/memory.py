"""Objects in the memory of this process, under memory://NAME/KEY, for tests and notebooks.

All stores of the process share them, so two that must not meet take two NAMEs. They last until the process ends and no
other process sees them: a run on Ray, whose workers are processes of their own, refuses them.
"""

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

from gradosr.config import S3Settings
from gradosr.errors import NotFound, ObjectChanged
from gradosr.store.backends import Backend, StoredObject
from gradosr.store.blocks import open_blocks


class _Object(NamedTuple):
    body: bytes
    version: str
    modified: int


_OBJECTS: dict[str, _Object] = {}
"""Objects of this process by URI."""
_LOCK = threading.Lock()
_VERSIONS = itertools.count(1)


def connect(_: S3Settings) -> Backend:
    """Make the backend; no settings apply."""
    return MemoryBackend()


class MemoryBackend:
    """The shortest backend that keeps the whole contract: see Backend. Versions are numbers, never used twice."""

    def list(self, uri: str) -> Iterator[StoredObject]:
        """Yield the objects that are there now; a NAME that nothing was written under is empty."""
        with _LOCK:
            found = [_stored(key, kept) for key, kept in sorted(_OBJECTS.items()) if key.startswith(uri)]
        return iter(found)

    def folders(self, uri: str) -> Sequence[str]:
        """Take the first steps of longer names."""
        steps = (stored.uri.removeprefix(uri).split("/") for stored in self.list(uri))
        return sorted({first for first, *deeper in steps if deeper})

    def stat(self, uri: str) -> StoredObject:
        """Return size, version and time."""
        return _stored(uri, _get(uri))

    def read(self, uri: str) -> bytes:
        """Return the bytes themselves, not a copy."""
        return _get(uri).body

    def open(self, stored: StoredObject) -> BinaryIO:
        """Open a reader that looks the object up again for every block."""

        def fetch(start: int, stop: int, _: threading.Event) -> bytearray:
            return bytearray(_unchanged(stored).body[start:stop])

        _unchanged(stored)
        return open_blocks(stored.size, fetch)

    def write(self, uri: str, body: bytes | BinaryIO, *, if_absent: bool = False) -> bool:
        """Write under the lock that all writers of the process share."""
        if not isinstance(body, bytes):
            body.seek(0)
            body = body.read()
        with _LOCK:
            if if_absent and uri in _OBJECTS:
                return False
            _put(uri, body)
        return True

    def exchange(self, uri: str, body: bytes, version: str | None) -> str | None:
        """Compare and write under the lock of `write`."""
        with _LOCK:
            current = _OBJECTS.get(uri)
            if version != (current and current.version):
                return None
            return _put(uri, body)

    def reach(self, uri: str) -> None:
        """Do nothing: there is no server."""

    def move(self, source: str, target: str) -> None:
        """Write under the new name, as a new version, and forget the old name: one step for all others."""
        with _LOCK:
            _put(target, _get(source).body)
            if source != target:
                del _OBJECTS[source]


def _get(uri: str) -> _Object:
    try:
        return _OBJECTS[uri]
    except KeyError:
        _check(uri)
        raise NotFound(f"{uri}: no such object") from None


def _put(uri: str, body: bytes) -> str:
    """Keep the body and return its version; the caller holds the lock."""
    _check(uri)
    version = str(next(_VERSIONS))
    _OBJECTS[uri] = _Object(body, version, int(time.time()))
    return version


def _check(uri: str) -> None:
    name, _, key = uri.partition("://")[2].partition("/")
    if not name or not key:
        raise NotFound(f"{uri}: names no object: memory://NAME/KEY")


def _unchanged(stored: StoredObject) -> _Object:
    current = _OBJECTS.get(stored.uri)
    if current is None or current.version != stored.version:
        happened = "replaced" if current else "removed"
        raise ObjectChanged(f"{stored.uri}: {happened} after it was listed")
    return current


def _stored(uri: str, kept: _Object) -> StoredObject:
    return StoredObject(uri, len(kept.body), kept.version, kept.modified)
