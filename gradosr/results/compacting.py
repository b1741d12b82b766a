"""Compaction of a finished run's table into a few large Parquet files in a new folder; the run itself is unchanged.

OUT/00000.parquet ...   the rows in the order of the parts; footers name the fingerprint and the parts of each file
OUT/_manifest.json      the content of run.json, the parts, and files, rows and checksums; written last, once all
                        files have been verified
"""

import hashlib
import json
import re
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gradosr.archive.shards import check_empty
from gradosr.errors import ConfigError, InputError, RunFailed
from gradosr.results.folder import RunFolder
from gradosr.results.part import ROW_GROUP, SCHEMA_VERSION, SPOOL_BYTES
from gradosr.store import Store, join
from gradosr.store.spool import spooled
from gradosr.store.threads import threads

MANIFEST = "_manifest.json"
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_OPEN = 8  # parts opened ahead, because each costs a round trip to the store
_BUCKETS = 256  # files of digests of keys; one at a time is in memory


def parse_size(text: str) -> int:
    """Parse a size such as 256MB or 1GiB into bytes. Raises ConfigError."""
    found = re.fullmatch(r"([0-9]+) ?([a-z]*)", text.strip(), re.IGNORECASE)
    unit = _UNITS.get(found[2].upper()) if found else None
    if found is None or unit is None or not int(found[1]):
        raise ConfigError(f"size {text}: expected a number of bytes, KB, MB or GB, such as 256MB")
    return int(found[1]) * unit


def compact(store: Store, results: str, target: str, size: int) -> dict[str, Any]:
    """Write the rows of `results` to files of at most about `size` bytes in `target`; return the manifest.

    The files are read back: rows, keys and the values of every column must equal those of the parts. Raises InputError
    if the run is not finished or the folder is not empty, RunFailed if the files read back differ from what was
    written.
    """
    folder = RunFolder(store, results)
    about, listing = folder.about(), folder.look()
    if not listing.finished:
        raise InputError(f"{results}: not a finished run (no _SUCCESS); run `gradosr score` to its end first")
    check_empty(target, store)
    parts, expected = folder.table_parts(listing), _Sums()
    with _Keys() as keys:
        files = []
        for number, (body, file_parts, rows) in enumerate(_files(folder, parts, about["fingerprint"], size, expected)):
            with closing(body):
                store.write(join(target, f"{number:05}.parquet"), body)
            files.append({"file": f"{number:05}.parquet", "rows": rows, "parts": len(file_parts)})
        found = _Sums()
        for file in files:
            for table in _row_groups(store, join(target, str(file["file"]))):
                found.add(table)
                keys.add(table["key"])
        _compare(target, expected, found)
        keys.check(results)
    document = {**about, "parts": parts, "files": files, "rows": found.rows, "checksums": found.hexdigests()}
    store.write(join(target, MANIFEST), json.dumps(document, indent=2).encode())
    return document


def _files(
    folder: RunFolder, parts: Sequence[str], fingerprint: dict[str, Any], size: int, expected: "_Sums"
) -> Iterator[tuple[BinaryIO, list[str], int]]:
    """Yield each file's body, the parts whose rows it holds, and its number of rows; the caller closes the body."""
    file: _File | None = None
    for table, names in _chunks(folder, parts):
        expected.add(table)
        if file is not None and file.bytes + file.last > size:
            yield file.finish(fingerprint)
            file = None
        if file is None:
            file = _File(table.schema)
        file.add(table, names)
    if file is not None:
        yield file.finish(fingerprint)


class _File:
    """A file that is being written, kept on local disk once it is large."""

    def __init__(self, schema: pa.Schema) -> None:
        self._body = tempfile.SpooledTemporaryFile(SPOOL_BYTES)  # noqa: SIM115 - closed by whoever puts it
        self._writer = pq.ParquetWriter(self._body, schema, compression="zstd")
        self._parts: dict[str, None] = {}
        self.bytes = self.last = self.rows = 0

    def add(self, table: pa.Table, parts: Sequence[str]) -> None:
        """Append a table as one row group."""
        before = self._body.tell()
        with spooled():
            self._writer.write_table(table, row_group_size=len(table))
        self.bytes, self.rows = self._body.tell(), self.rows + len(table)
        self.last = self.bytes - before
        self._parts.update(dict.fromkeys(parts))

    def finish(self, fingerprint: dict[str, Any]) -> tuple[BinaryIO, list[str], int]:
        """Finish the file; return its body, rewound to the start, its parts, and its number of rows."""
        facts = {"schema_version": SCHEMA_VERSION, "fingerprint": fingerprint, "parts": list(self._parts)}
        self._writer.add_key_value_metadata({f"gradosr.{name}": json.dumps(fact) for name, fact in facts.items()})
        with spooled():
            self._writer.close()
        self._body.seek(0)
        return cast("BinaryIO", self._body), list(self._parts), self.rows


def _chunks(folder: RunFolder, parts: Sequence[str]) -> Iterator[tuple[pa.Table, list[str]]]:
    """Yield the table ROW_GROUP rows at a time, with the names of the parts that the rows come from."""
    held: list[pa.Table] = []
    names: dict[str, None] = {}
    rows = 0
    for part, table in _tables(folder, parts):
        start = 0
        while start < len(table):
            piece = table[start : start + ROW_GROUP - rows]
            start += len(piece)
            held.append(piece)
            names[part] = None
            rows += len(piece)
            if rows == ROW_GROUP:
                yield _joined(folder, held), list(names)
                held, names, rows = [], {}, 0
    if held:
        yield _joined(folder, held), list(names)


def _joined(folder: RunFolder, tables: Sequence[pa.Table]) -> pa.Table:
    try:
        return pa.concat_tables(tables).combine_chunks()
    except pa.ArrowInvalid as error:
        raise InputError(f"{folder.uri}: its parts have different columns; score it into one new folder") from error


def _tables(folder: RunFolder, parts: Sequence[str]) -> Iterator[tuple[str, pa.Table]]:
    """Yield the rows of the parts in order, at most ROW_GROUP at a time, without the parts' metadata."""

    def opened(part: str) -> tuple[BinaryIO, Iterator[pa.RecordBatch], pa.RecordBatch | None]:
        body = folder.open_part(part)
        batches = pq.ParquetFile(body, pre_buffer=False).iter_batches(ROW_GROUP, use_threads=False)
        return body, batches, next(batches, None)

    running: deque[tuple[str, Future[Any]]] = deque()
    left = iter(parts)
    with threads(_OPEN, "parts") as pool:
        while True:
            while len(running) < _OPEN and (part := next(left, None)) is not None:
                running.append((part, pool.submit(opened, part)))
            if not running:
                return
            part, future = running.popleft()
            body, batches, batch = future.result()
            with closing(body):
                while batch is not None:
                    yield part, pa.Table.from_batches([batch]).replace_schema_metadata()
                    batch = next(batches, None)


def _row_groups(store: Store, uri: str) -> Iterator[pa.Table]:
    with store.open(store.stat(uri)) as body:
        file = pq.ParquetFile(body, pre_buffer=False)
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, use_threads=False)


class _Sums:
    """The number of rows and a SHA-256 of each column; equal rows in equal chunks give equal digests."""

    def __init__(self) -> None:
        self.rows = 0
        self._digests: dict[str, Any] = {}

    def add(self, table: pa.Table) -> None:
        """Add the next chunk."""
        self.rows += len(table)
        for name in table.column_names:
            digest = self._digests.setdefault(name, hashlib.sha256())
            for content in _content(table[name].combine_chunks()):
                digest.update(content)

    def hexdigests(self) -> dict[str, str]:
        """Return the digest of each column."""
        return {name: digest.hexdigest() for name, digest in self._digests.items()}


def _content(array: pa.Array) -> Iterator[bytes]:
    """Yield the validity of each value and then the valid values, ignoring what memory holds in place of nulls."""
    yield array.is_valid().cast(pa.uint8()).to_numpy().tobytes()
    values = array.drop_null()
    if pa.types.is_fixed_size_list(values.type) or pa.types.is_list(values.type):
        yield pc.list_value_length(values).to_numpy().tobytes()
        yield from _content(values.flatten())
    elif pa.types.is_string(values.type):
        yield pc.binary_length(values).to_numpy().tobytes()
        yield "".join(values.to_pylist()).encode()
    else:
        yield values.to_numpy(zero_copy_only=False).tobytes()


class _Keys:
    """Digests of all keys, in temporary files by their first byte; used as `with _Keys() as keys`."""

    def __enter__(self) -> "_Keys":
        self._files = [tempfile.TemporaryFile() for _ in range(_BUCKETS)]  # noqa: SIM115 - closed on exit
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()

    def add(self, keys: pa.ChunkedArray) -> None:
        """Add keys."""
        buckets: list[list[bytes]] = [[] for _ in range(_BUCKETS)]
        for key in keys.to_pylist():
            digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
            buckets[digest[0]].append(digest)
        with spooled():
            for file, digests in zip(self._files, buckets, strict=True):
                file.write(b"".join(digests))

    def check(self, results: str) -> None:
        """Raise InputError if any key occurs more than once."""
        twice = 0
        for file in self._files:
            file.seek(0)
            digests = np.frombuffer(file.read(), np.uint64).reshape(-1, 2)
            ordered = digests[np.lexsort(digests.T)]
            twice += int((ordered[1:] == ordered[:-1]).all(1).sum())
        if twice:
            raise InputError(f"{results}: {twice} keys occur more than once; these parts do not belong to one run")


def _compare(target: str, expected: _Sums, found: _Sums) -> None:
    theirs = found.hexdigests()
    faults = [name for name, digest in expected.hexdigests().items() if theirs.get(name) != digest]
    if expected.rows != found.rows or faults:
        raise RunFailed(
            f"{target}: {found.rows:,} of {expected.rows:,} rows read back, columns that differ: "
            f"{', '.join(faults) or 'none'}; the run itself is untouched, delete this folder and try again"
        )
