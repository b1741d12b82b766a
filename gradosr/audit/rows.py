"""Streaming access to the table of a run: a few parts at a time, by row group, and only the requested columns.

Parts are read with pyarrow's Parquet reader through the store, so that S3 is reached with the same settings, retries
and versions as everywhere else; a database engine would need its own.
"""

import hashlib
import json
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gradosr.errors import EmptyTable, FingerprintMismatch, InputError, first_line
from gradosr.results.folder import Listing, RunFolder
from gradosr.results.part import schema
from gradosr.store import Store
from gradosr.store.threads import threads

THREADS = 4
SHOWN_LETTERS = 4096
"""Most letters shown of a key, label or reason; names in an archive can have any length."""


@dataclass
class OpenPart:
    """One part that is open for reading; to be used by one thread."""

    file: pq.ParquetFile
    without: frozenset[str] = frozenset()
    """Ids of rows that are left out."""

    @property
    def columns(self) -> Sequence[str]:
        """The names of the part's columns."""
        return list(self.file.schema_arrow.names)

    @property
    def modified(self) -> int | None:
        """The time at which the shard was last modified, in seconds since 1970.

        None for a group of single images, and for a part written before footers recorded it.
        """
        shard = json.loads((self.file.metadata.metadata or {}).get(b"gradosr.shard", b"{}"))
        modified: int | None = shard.get("modified")
        return modified

    def groups(self, columns: Sequence[str]) -> Iterator[tuple[int, pa.Table]]:
        """Yield the number and the rows of each row group."""
        for number in range(self.file.num_row_groups):
            yield number, self.group(number, columns)

    def group(self, number: int, columns: Sequence[str]) -> pa.Table:
        """Read the rows of one row group."""
        rows = self.file.read_row_group(number, columns=list(columns), use_threads=False)
        if not self.without:
            return rows
        keys = rows if "key" in columns else self.file.read_row_group(number, columns=["key"], use_threads=False)
        return rows.filter(pa.array([id_of(key) not in self.without for key in keys["key"].to_pylist()], pa.bool_()))


class RunTable:
    """The parts that make up a run's table: those named by _SUCCESS, or in an unfinished run all parts so far."""

    def __init__(
        self, store: Store, uri: str, only: Collection[str] | None = None, *, with_learned: bool = True
    ) -> None:
        """Open the table of a run; if `only` is given, keep just the parts with these names.

        `with_learned` False leaves out the images that the run's bundle has learned from: their scores are not those of
        fresh images, so they would spoil every rate.

        Raises InputError if there is no run, EmptyTable if no part is left.
        """
        self.folder = RunFolder(store, uri)
        self.lock = threading.Lock()
        """Lock for functions passed to `each` that change shared state."""
        self.about = self.folder.about()
        self._without = frozenset(() if with_learned else self.about["learned"])
        self.listing = self.folder.look()
        self.parts = [part for part in self.folder.table_parts(self.listing) if only is None or part in only]
        if not self.parts:
            raise EmptyTable(f"{uri}: {_why_empty(self.listing)}")

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The fingerprint in run.json, which every part has to match."""
        fingerprint: dict[str, Any] = self.about["fingerprint"]
        return fingerprint

    @property
    def kind(self) -> str:
        """The kind of input: parquet, tar or images."""
        return str(self.fingerprint["input"]["kind"])

    def each(self, work: Callable[[str, OpenPart], None], parts: Sequence[str] | None = None) -> None:
        """Call `work` with every part, several at once and in no order. Raises what `work` and `open` raise."""

        def one(part: str) -> None:
            with self.open(part) as opened:
                work(part, opened)

        with threads(THREADS, "parts") as pool:
            for _ in pool.map(one, self.parts if parts is None else parts):
                pass

    @contextmanager
    def open(self, part: str) -> Iterator[OpenPart]:
        """Open one part. Raises InputError if it is damaged, FingerprintMismatch if its settings are different."""
        with self.folder.open_part(part) as body:
            try:
                opened = OpenPart(pq.ParquetFile(body, pre_buffer=False), self._without)
                if missing := [name for name in schema().names if name not in opened.columns]:
                    raise InputError(f"{self.folder.uri}: part {part} lacks the columns {', '.join(missing)}")
                self._check(part, (opened.file.metadata.metadata or {}).get(b"gradosr.fingerprint", b"null"))
                yield opened
            except (pa.ArrowInvalid, ValueError) as error:
                raise InputError(f"{self.folder.uri}: part {part} is damaged: {first_line(error)}") from error

    def _check(self, part: str, footer: bytes) -> None:
        theirs = json.loads(footer)
        if theirs == self.fingerprint:
            return
        if not isinstance(theirs, dict):
            raise InputError(
                f"{self.folder.uri}: part {part} was not written by gradosr (its footer has no fingerprint)"
            )
        raise FingerprintMismatch(
            f"{self.folder.uri}: parts of mixed settings: {part} has {differing(theirs, self.fingerprint)} than "
            "run.json; score into a folder of its own"
        )


def find(table: RunTable, names: Collection[str], named: Callable[[str], str] = str) -> dict[str, str]:
    """Return key and shard of each row that a table has of those named, in one pass with the memory of these alone.

    `named` makes the name of a key; by default the key is its own.
    """
    wanted, found, lock = set(names), dict[str, str](), threading.Lock()

    def look(_part: str, opened: OpenPart) -> None:
        for _number, rows in opened.groups(["key", "shard"]):
            here = [key for key in rows["key"].to_pylist() if named(key) in wanted]
            if here:
                shard = rows["shard"][0].as_py()  # all rows of a part belong to one shard
                with lock:
                    found.update(dict.fromkeys(here, shard))

    if wanted:
        table.each(look)
    return found


def differing(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """Describe how two fingerprints differ, for example `other bundle (... against ...)`."""
    keys = [key for key in sorted({*theirs, *ours}) if theirs.get(key) != ours.get(key)]
    return "other " + ", ".join(f"{key} ({theirs.get(key)!r} against {ours.get(key)!r})" for key in keys)


def _why_empty(listing: Listing) -> str:
    if listing.finished:
        return f"the run is finished and its table is empty ({len(listing.quarantined)} shards are quarantined)"
    return "no finished parts yet; run `gradosr score` first"


def key_hash(key: str) -> bytes:
    """Return the SHA-256 digest of a key."""
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


def id_of(key: str) -> str:
    """Return the id of a row, which is safe as a file name whatever the key contains."""
    return key_hash(key).hex()[:16]


def shown(text: str | None) -> str | None:
    """Return a text from the archive, cut if it is longer than anybody would read."""
    return text if text is None or len(text) <= SHOWN_LETTERS else text[: SHOWN_LETTERS - 1] + "…"
