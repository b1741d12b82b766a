"""A backend that the table does not have, as a contributor would write it: objects in a SQLite database, toy://NAME/KEY.

Together with one line in BACKENDS it is all that a new kind of store takes.
"""

import io
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO

from gradosr.config import S3Settings
from gradosr.errors import NotFound, ObjectChanged
from gradosr.store import Backend, StoredObject
from gradosr.store.blocks import open_blocks

FOLDER = Path()
"""Folder of the database; tests set it."""
TABLE = "CREATE TABLE IF NOT EXISTS objects (uri TEXT PRIMARY KEY, body BLOB, version TEXT, modified INTEGER)"


def connect(_: S3Settings) -> Backend:
    return ToyBackend()


class ToyBackend:
    """Objects in one SQLite database; the contract is that of `Backend`."""

    def list(self, uri: str) -> Iterator[StoredObject]:
        with _transaction() as database:
            rows = database.execute("SELECT uri, length(body), version, modified FROM objects ORDER BY uri").fetchall()
        return (StoredObject(*row) for row in rows if row[0].startswith(uri))

    def folders(self, uri: str) -> Sequence[str]:
        steps = (stored.uri.removeprefix(uri).split("/") for stored in self.list(uri))
        return sorted({first for first, *deeper in steps if deeper})

    def stat(self, uri: str) -> StoredObject:
        with _transaction() as database:
            return _stored(database, uri)

    def read(self, uri: str) -> bytes:
        with _transaction() as database:
            return _body(database, _stored(database, uri))

    def open(self, stored: StoredObject) -> BinaryIO:
        def fetch(start: int, stop: int, _: threading.Event) -> bytearray:
            with _transaction() as database:
                try:
                    current = _stored(database, stored.uri)
                except NotFound as error:
                    raise ObjectChanged(f"{stored.uri}: removed after it was listed") from error
                if current.version != stored.version:
                    raise ObjectChanged(f"{stored.uri}: replaced after it was listed")
                return bytearray(_body(database, stored)[start:stop])

        return open_blocks(stored.size, fetch)

    def write(self, uri: str, body: bytes | BinaryIO, *, if_absent: bool = False) -> bool:
        stream = io.BytesIO(body) if isinstance(body, bytes) else body
        stream.seek(0)
        with _transaction() as database:
            if if_absent and _version(database, uri) is not None:
                return False
            _put(database, uri, stream.read())
        return True

    def exchange(self, uri: str, body: bytes, version: str | None) -> str | None:
        with _transaction() as database:
            return _put(database, uri, body) if _version(database, uri) == version else None

    def reach(self, uri: str) -> None: ...

    def move(self, source: str, target: str) -> None:
        with _transaction() as database:
            _put(database, target, _body(database, _stored(database, source)))
            database.execute("DELETE FROM objects WHERE uri = ?", [source])


@contextmanager
def _transaction() -> Iterator[sqlite3.Connection]:
    """One at a time, in whatever thread or process."""
    with closing(sqlite3.connect(FOLDER / "toy.db", timeout=60, isolation_level=None)) as database:
        database.execute("PRAGMA synchronous = OFF")
        database.execute("BEGIN IMMEDIATE")
        database.execute(TABLE)
        yield database
        database.execute("COMMIT")


def _stored(database: sqlite3.Connection, uri: str) -> StoredObject:
    found = "SELECT uri, length(body), version, modified FROM objects WHERE uri = ?"
    if row := database.execute(found, [uri]).fetchone():
        return StoredObject(*row)
    raise NotFound(f"{uri}: no such object")


def _version(database: sqlite3.Connection, uri: str) -> str | None:
    row = database.execute("SELECT version FROM objects WHERE uri = ?", [uri]).fetchone()
    return row and row[0]


def _body(database: sqlite3.Connection, stored: StoredObject) -> bytes:
    return database.execute("SELECT body FROM objects WHERE uri = ?", [stored.uri]).fetchone()[0]


def _put(database: sqlite3.Connection, uri: str, body: bytes) -> str:
    version = uuid.uuid4().hex
    database.execute("REPLACE INTO objects VALUES (?, ?, ?, ?)", [uri, body, version, int(time.time())])
    return version
