"""Pieces: Parquet files that list the images of some tens of groups each, and what a group's shard is read from.

One row per image: `group`, the number of its group; `name`, its path below the input URI, as bytes; `size` and
`version`, as it was listed. The images of a group stand together, and within a group in order.
"""

import io
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gradosr.archive.shards import Shard
from gradosr.errors import InputError, first_line
from gradosr.store import Store, StoredObject
from gradosr.store.spool import spooled

PIECE_IMAGES = 20_000
"""Images after which a piece is full: half a megabyte, which a worker reads for every group.

A group is never divided.
"""
_READ_AT_ONCE = 1000  # rows that become Python objects at a time
_SCHEMA = pa.schema([("group", pa.int64()), ("name", pa.binary()), ("size", pa.int64()), ("version", pa.string())])


Member = tuple[str, int, str]
"""One image of a group: its path below the input URI, size and version; a plain tuple, as there are so many."""


class PieceWriter:
    """Pieces that grow one after the other in a temporary folder, until they are put into a record or dropped."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._columns: tuple[list[int], list[bytes], list[int], list[str]] = ([], [], [], [])
        self.pieces: list[str] = []
        """Paths of the pieces, in order; the last one may still grow."""

    def add(self, group: int, members: Sequence[Member]) -> str:
        """Append a group, and return the path of the piece that will list it."""
        groups, names, sizes, versions = self._columns
        if not groups:
            self.pieces.append(str(self._place() / f"{len(self.pieces):06}.parquet"))
        groups.extend([group] * len(members))
        for name, size, version in members:
            names.append(name.encode(errors="surrogateescape"))
            sizes.append(size)
            versions.append(version)
        piece = self.pieces[-1]
        if len(groups) >= PIECE_IMAGES:
            self.close()
        return piece

    def close(self) -> None:
        """Write the piece that has been growing, if there is one."""
        if self._columns[0]:
            with spooled("a long listing"):
                pq.write_table(pa.table(list(self._columns), schema=_SCHEMA), self.pieces[-1], compression="zstd")
            self._columns = ([], [], [], [])

    def _place(self) -> Path:
        """Return the temporary folder, which goes with this object."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="gradosr-groups-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        return self._folder


def rows_of(piece: str, store: Store) -> Iterator[tuple[int, Member]]:
    """Yield group and image of each row. Raises InputError if the piece is damaged."""
    try:
        file = pq.ParquetFile(io.BytesIO(store.read(piece)), pre_buffer=False)
        for batch in file.iter_batches(_READ_AT_ONCE, columns=_SCHEMA.names, use_threads=False):
            groups, names, sizes, versions = (batch.column(name).to_pylist() for name in _SCHEMA.names)
            yield from zip(groups, zip(map(_text, names), sizes, versions, strict=True), strict=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise damaged(piece, error) from error


def members(shard: Shard, store: Store) -> list[StoredObject]:
    """Return the images of a group, in order. Raises StoreError, or InputError if its piece is damaged."""
    folder, _, number = shard.uri.rpartition("#group-")
    table = _table(shard.piece, store)
    rows = table.filter(pc.equal(table["group"], int(number)))
    names, sizes, versions = (rows[name].to_pylist() for name in ("name", "size", "version"))
    uris = (folder + _text(name) for name in names)
    return list(map(StoredObject, uris, sizes, versions))


@lru_cache(maxsize=2)  # a worker's next group is often of the same piece
def _table(piece: str, store: Store) -> pa.Table:
    try:
        file = pq.ParquetFile(io.BytesIO(store.read(piece)), pre_buffer=False)
        return file.read(use_threads=False).select(_SCHEMA.names)
    except (pa.ArrowInvalid, OSError, KeyError) as error:
        raise damaged(piece, error) from error


def _text(name: bytes) -> str:
    return name.decode(errors="surrogateescape")


def damaged(uri: str, error: Exception) -> InputError:
    """Make the error for a file of a run folder's record that cannot be read."""
    return InputError(f"{uri}: the record of groups is damaged ({first_line(error)}); choose another output")
