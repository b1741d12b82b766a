"""The table of a run, streamed: parts on a few threads, row group after row group, only the columns asked for.

Read with pyarrow's Parquet reader through the store, so that S3 is reached by the same settings, retries and versions
as everywhere; a database engine would need its own.
"""

import hashlib
import json
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gradosr.errors import EmptyTable, FingerprintMismatch, InputError, first_line
from gradosr.results.folder import Listing, RunFolder
from gradosr.results.part import schema
from gradosr.store import Store

THREADS = 4
SHOWN_LETTERS = 4096
"""Of a key, label or reason that is shown; what an archive names can be of any length."""


@dataclass
class OpenPart:
    """One part while it is read; for one thread."""

    file: pq.ParquetFile

    @property
    def columns(self) -> Sequence[str]:
        """Their names."""
        return list(self.file.schema_arrow.names)

    @property
    def modified(self) -> int | None:
        """When the shard was, in seconds since 1970; None for a group, and where the footer is older than the fact."""
        shard = json.loads((self.file.metadata.metadata or {}).get(b"gradosr.shard", b"{}"))
        modified: int | None = shard.get("modified")
        return modified

    def groups(self, columns: Sequence[str]) -> Iterator[tuple[int, pa.Table]]:
        """Number and rows of each row group."""
        for number in range(self.file.num_row_groups):
            yield number, self.group(number, columns)

    def group(self, number: int, columns: Sequence[str]) -> pa.Table:
        """Rows of one row group."""
        return self.file.read_row_group(number, columns=list(columns), use_threads=False)


class RunTable:
    """The parts that make up a run's table: those that _SUCCESS names, of an unfinished run those there are."""

    def __init__(self, store: Store, uri: str, only: Collection[str] | None = None) -> None:
        """With `only`, those of these names. Raises InputError without a run, EmptyTable without one of its parts."""
        self.folder = RunFolder(store, uri)
        self.lock = threading.Lock()
        """For what `each` calls to change what it shares."""
        self.about = self.folder.about()
        self.listing = self.folder.look()
        self.parts = [part for part in self.folder.table_parts(self.listing) if only is None or part in only]
        if not self.parts:
            raise EmptyTable(f"{uri}: {_why_empty(self.listing)}")

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Of run.json, and of every part."""
        fingerprint: dict[str, Any] = self.about["fingerprint"]
        return fingerprint

    @property
    def kind(self) -> str:
        """Of the input: parquet, tar or images."""
        return str(self.fingerprint["input"]["kind"])

    def each(self, work: Callable[[str, OpenPart], None], parts: Sequence[str] | None = None) -> None:
        """Call `work` with every part, several at once, in no order. Raises what it raises, and as `open`."""

        def one(part: str) -> None:
            with self.open(part) as opened:
                work(part, opened)

        pool = ThreadPoolExecutor(THREADS, "parts")
        try:
            for _ in pool.map(one, self.parts if parts is None else parts):
                pass
        finally:
            pool.shutdown(cancel_futures=True)

    @contextmanager
    def open(self, part: str) -> Iterator[OpenPart]:
        """One part. Raises InputError when it is damaged, FingerprintMismatch when it is of other settings."""
        with self.folder.open_part(part) as body:
            try:
                opened = OpenPart(pq.ParquetFile(body, pre_buffer=False))
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
                f"{self.folder.uri}: part {part} was not written by gradosr (no fingerprint in its footer)"
            )
        raise FingerprintMismatch(
            f"{self.folder.uri}: parts of mixed settings: {part} has {differing(theirs, self.fingerprint)} than "
            "run.json; score into a folder of its own"
        )


def differing(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """What two fingerprints differ in: `other bundle (... against ...)`."""
    keys = [key for key in sorted({*theirs, *ours}) if theirs.get(key) != ours.get(key)]
    return "other " + ", ".join(f"{key} ({theirs.get(key)!r} against {ours.get(key)!r})" for key in keys)


def _why_empty(listing: Listing) -> str:
    if listing.finished:
        return f"the run is finished and its table is empty ({len(listing.quarantined)} shards are quarantined)"
    return "no finished parts yet; run `gradosr score` first"


def key_hash(key: str) -> bytes:
    """SHA-256 of a key."""
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


def id_of(key: str) -> str:
    """The id of a row: also a file name, whatever the key says."""
    return key_hash(key).hex()[:16]


def shown(text: str | None) -> str | None:
    """A text from the archive, cut where it is longer than anybody reads."""
    return text if text is None or len(text) <= SHOWN_LETTERS else text[: SHOWN_LETTERS - 1] + "…"
