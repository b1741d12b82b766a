"""The run folder: what is done, what is not, and which parts make up the table.

RUN/run.json        the fingerprint, written once before the first part
RUN/parts/          one Parquet object per shard version; its presence is the completion mark
RUN/quarantine/     PART.json: the mark of a shard version that can never be read, or kills its workers;
                    PART.images.jsonl: the bad images of a part, one JSON line each
RUN/groups/         which single images form which shard (kind: images)
RUN/superseded/     parts whose shard changed or vanished, with what quarantine/ held of them
RUN/screenings/     audits of nights (screening.py)
RUN/stats.json      counts and seconds by stage, merged and by part
RUN/_SUCCESS        the parts that make up the table, and their merged counts and seconds
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, BinaryIO, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq

from gradosr.archive.shards import Shard
from gradosr.errors import FingerprintMismatch, InputError, NotFound
from gradosr.results.outcome import PartStats
from gradosr.results.part import SCHEMA_VERSION
from gradosr.store import Store, StoredObject, is_s3, join

_LOOKED_AT = ("_SUCCESS", "run.json", "parts/", "quarantine/", "groups/")
"""What of a run folder is listed; audits of nights and what was superseded grow for ever beside it."""
PART, MARK, BAD_IMAGES = ".parquet", ".json", ".images.jsonl"  # endings behind the name of a part
Number = TypeVar("Number", int, float)


@dataclass
class Listing:
    """What was there when a run folder was looked at."""

    parts: set[str] = field(default_factory=set)
    """Names without folder and ending."""
    quarantined: set[str] = field(default_factory=set)
    """Parts of which there is a mark instead."""
    bad_images: set[str] = field(default_factory=set)
    """Parts whose bad images are listed."""
    groups: list[str] = field(default_factory=list)
    """URIs of the group records, in order."""
    finished: bool = False
    """Whether _SUCCESS is there."""
    claimed: bool = False
    """Whether run.json is there."""


class RunFolder:
    """One results folder."""

    def __init__(self, store: Store, uri: str) -> None:
        self._store, self.uri = store, uri

    def path(self, *names: str) -> str:
        """URI of something inside."""
        return join(self.uri, "/".join(names))

    def claim(self, fingerprint: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        """Write run.json. Raises FingerprintMismatch when another run was first, StoreError when it cannot."""
        document = {"schema_version": SCHEMA_VERSION, "fingerprint": fingerprint, **about}
        if not self._store.write(self.path("run.json"), json.dumps(document, indent=2).encode(), if_absent=True):
            self.check(fingerprint)

    def check(self, fingerprint: Mapping[str, Any]) -> None:
        """Raise FingerprintMismatch with each difference to the folder's own fingerprint."""
        theirs = self.fingerprint()
        ours = json.loads(json.dumps(fingerprint))
        different = [key for key in sorted({*theirs, *ours}) if theirs.get(key) != ours.get(key)]
        if different:
            changes = "; ".join(f"{key} was {theirs.get(key)!r}, is {ours.get(key)!r}" for key in different)
            raise FingerprintMismatch(f"{self.uri}: holds a run of other settings ({changes}); choose another output")

    def fingerprint(self) -> dict[str, Any]:
        """The fingerprint in run.json. Raises InputError when there is no run."""
        return cast("dict[str, Any]", self.about()["fingerprint"])

    def about(self) -> dict[str, Any]:
        """run.json. Raises InputError when there is no run."""
        try:
            document = json.loads(self._store.read(self.path("run.json")))
            added_later = {name: document.get(name) for name in ("false_alarm_rate", "calibration")}
            return {"fingerprint": document["fingerprint"], "classes": document["classes"], **added_later}
        except NotFound as error:
            raise InputError(f"{self.uri}: no results there ({error}); `gradosr score` makes them") from error
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.uri}: run.json is damaged; choose another output") from error

    def look(self) -> Listing:
        """List the folder; empty where a local one is not there yet. Raises NotFound without its bucket."""
        listing = Listing()
        start = len(self.path(""))
        for stored in chain.from_iterable(map(self._listed, _LOOKED_AT)):
            folder, _, name = stored.uri[start:].rpartition("/")
            if folder == "parts" and name.endswith(PART):
                listing.parts.add(name.removesuffix(PART))
            elif folder == "quarantine" and name.endswith(MARK):
                listing.quarantined.add(name.removesuffix(MARK))
            elif folder == "quarantine" and name.endswith(BAD_IMAGES):
                listing.bad_images.add(name.removesuffix(BAD_IMAGES))
            elif folder == "groups":
                listing.groups.append(stored.uri)
            elif not folder:
                listing.finished |= name == "_SUCCESS"
                listing.claimed |= name == "run.json"
        return listing

    def _listed(self, name: str) -> Iterator[StoredObject]:
        try:
            yield from self._store.list(self.path(name))
        except NotFound:
            if is_s3(self.uri):
                raise

    def recorded_groups(self, listing: Listing) -> list[list[str]]:
        """Names of the images of every group recorded so far."""
        return [group for uri in sorted(listing.groups) for group in json.loads(self._store.read(uri))]

    def record_groups(self, listing: Listing, groups: Sequence[Sequence[str]]) -> bool:
        """Append groups to the record; False when another driver did so first (list again)."""
        body = json.dumps(groups).encode()
        return self._store.write(self.path("groups", f"{len(listing.groups):06}.json"), body, if_absent=True)

    def put_part(self, part: str, body: BinaryIO) -> None:
        """The commit. A part that is there already counts: same name, same rows."""
        self._store.write(self.path("parts", part + PART), body, if_absent=True)

    def put_bad_images(self, part: str, lines: BinaryIO) -> None:
        """List the bad images of a part that is about to be put; in place of what a worker left that died over it."""
        self._store.write(self.path("quarantine", part + BAD_IMAGES), lines)

    def quarantine(self, shard: Shard, reason: str, attempts: int) -> None:
        """Write the terminal mark of a shard version."""
        mark = {"shard": shard.uri, "version": shard.version, "reason": reason, "attempts": attempts}
        self._store.write(self.path("quarantine", shard.part + MARK), json.dumps(mark, indent=2).encode())

    def reopen(self) -> None:
        """Take the old _SUCCESS away: the table it names is about to be outdated."""
        self._store.move(self.path("_SUCCESS"), self.path("superseded", "_SUCCESS"))

    def supersede(self, folder: str, names: Iterable[str], ending: str) -> None:
        """Move parts, marks or lists of bad images out of the table."""
        for name in sorted(names):
            self._store.move(self.path(folder, name + ending), self.path("superseded", name + ending))

    def stats(self, parts: Iterable[str], fresh: Mapping[str, PartStats]) -> dict[str, PartStats]:
        """Of every part, by name: as just reported, else from stats.json, else from the part's footer."""
        known = {**self._recorded_stats(), **fresh}
        wanted = sorted(parts)
        unknown = [part for part in wanted if part not in known]
        with ThreadPoolExecutor(16, "footers") as pool:
            known.update(zip(unknown, pool.map(self._footer_stats, unknown), strict=True))
        return {part: known[part] for part in wanted}

    def _recorded_stats(self) -> dict[str, PartStats]:
        try:
            recorded = json.loads(self._store.read(self.path("stats.json")))["parts"]
            return {part: PartStats(entry["counts"], entry["seconds"]) for part, entry in recorded.items()}
        except (NotFound, ValueError, KeyError, TypeError, AttributeError):  # never the only record: the footers are
            return {}

    def _footer_stats(self, part: str) -> PartStats:
        with self.open_part(part) as body:
            metadata = pq.read_metadata(body).metadata
        return PartStats(json.loads(metadata[b"gradosr.counts"]), json.loads(metadata[b"gradosr.seconds"]))

    def finish(self, summary: Mapping[str, Any], parts: Mapping[str, PartStats], *, success: bool) -> None:
        """Write stats.json and, when the table is whole, _SUCCESS last."""
        by_part = {part: stats._asdict() for part, stats in parts.items()}
        self._store.write(self.path("stats.json"), json.dumps({**summary, "parts": by_part}).encode())
        if success:
            self._store.write(self.path("_SUCCESS"), json.dumps({**summary, "parts": sorted(parts)}).encode())

    def table_parts(self, listing: Listing) -> list[str]:
        """Names of the parts that make up the table: as _SUCCESS has them, of an unfinished run those there are."""
        if not listing.finished:
            return sorted(listing.parts)
        return cast("list[str]", json.loads(self._store.read(self.path("_SUCCESS")))["parts"])

    def open_part(self, part: str) -> BinaryIO:
        """A reader of the part's file; to be closed."""
        return self._store.open(self._store.stat(self.path("parts", part + PART)))

    def mark(self, part: str) -> dict[str, Any]:
        """The quarantine mark of a shard version: shard, version, reason, attempts."""
        return cast("dict[str, Any]", json.loads(self._store.read(self.path("quarantine", part + MARK))))

    def table(self, columns: Sequence[str]) -> tuple[pa.Table, bool]:
        """Rows of the parts that make up the table, and whether the run is finished (else: the parts there are)."""
        self.fingerprint()
        listing = self.look()
        parts = self.table_parts(listing)
        if not parts:
            raise InputError(f"{self.uri}: no finished parts yet; run `gradosr score` first")
        with ThreadPoolExecutor(8, "parts") as pool:
            tables = list(pool.map(lambda part: self._read_part(part, columns), parts))
        return pa.concat_tables(tables), listing.finished

    def _read_part(self, part: str, columns: Sequence[str]) -> pa.Table:
        # On no thread of Arrow's: it may hold `body` beyond its end, and then crashes a Python that exits.
        with self.open_part(part) as body:
            return pq.ParquetFile(body, pre_buffer=False).read(list(columns), use_threads=False)


def merged(parts: Iterable[Mapping[str, Number]]) -> dict[str, Number]:
    """Counts or seconds of several parts added up."""
    total: dict[str, Number] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0) + value
    return total
