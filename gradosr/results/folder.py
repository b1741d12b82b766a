"""The run folder: which shards are done, which are not, and which parts make up the table.

RUN/run.json        the fingerprint, written once before the first part
RUN/parts/          one Parquet object per shard version; its presence is the completion mark
RUN/quarantine/     PART.json: the mark of a shard version that can never be read, or kills its workers;
                    PART.images.jsonl: the bad images of a part, one JSON line each
RUN/groups/         which single images form which shard (kind: images): pieces (archive/pieces.py), and
                    NNNNNN.json, the pieces of the groups recorded at one time; written last, its presence counts
RUN/superseded/     parts whose shard changed or vanished, with their files from quarantine/
RUN/screenings/     audits of nights (screening.py)
RUN/labels/         what people said of images (labels/folder.py)
RUN/stats.json      counts, seconds by stage and what was passed over, merged
RUN/stats.parquet   the same by part (stats.py)
RUN/_SUCCESS        the parts that make up the table, and their merged counts and seconds
"""

import hashlib
import io
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from gradosr.archive.groups import Recording, Regrouped
from gradosr.archive.pieces import damaged
from gradosr.archive.shards import Shard
from gradosr.errors import FingerprintMismatch, InputError, NotFound, RunFailed
from gradosr.results.outcome import PartStats
from gradosr.results.part import SCHEMA_VERSION, SPOOL_BYTES
from gradosr.results.stats import TableStats
from gradosr.store import Store, StoredObject, join, scheme_of
from gradosr.store.spool import spooled
from gradosr.store.threads import threads

_LOOKED_AT = ("_SUCCESS", "run.json", "parts/", "quarantine/", "groups/")
"""The parts of a run folder that are listed; audits of nights and superseded parts grow without bound beside them."""
PART, MARK, BAD_IMAGES = ".parquet", ".json", ".images.jsonl"  # endings after the name of a part


@dataclass
class Listing:
    """The content of a run folder at the time it was listed."""

    parts: set[str] = field(default_factory=set)
    """Names of the finished parts, without folder and ending."""
    quarantined: set[str] = field(default_factory=set)
    """Names of parts that have a quarantine mark instead."""
    bad_images: set[str] = field(default_factory=set)
    """Names of parts with a list of bad images."""
    groups: list[str] = field(default_factory=list)
    """URIs of the group records, in order."""
    finished: bool = False
    """True if _SUCCESS exists."""
    claimed: bool = False
    """True if run.json exists."""


class RunFolder:
    """A results folder in a store."""

    def __init__(self, store: Store, uri: str) -> None:
        self._store, self.uri = store, uri

    def path(self, *names: str) -> str:
        """Return the URI of a file in the folder."""
        return join(self.uri, "/".join(names))

    def claim(self, fingerprint: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        """Write run.json. Raises FingerprintMismatch if another run was first, StoreError if it cannot be written."""
        document = {"schema_version": SCHEMA_VERSION, "fingerprint": fingerprint, **about}
        if not self._store.write(self.path("run.json"), json.dumps(document, indent=2).encode(), if_absent=True):
            self.check(fingerprint)

    def check(self, fingerprint: Mapping[str, Any]) -> None:
        """Raise FingerprintMismatch, naming each difference, if the folder's own fingerprint is another one."""
        theirs = self.fingerprint()
        ours = json.loads(json.dumps(fingerprint))
        different = [key for key in sorted({*theirs, *ours}) if theirs.get(key) != ours.get(key)]
        if different:
            changes = "; ".join(f"{key} was {theirs.get(key)!r}, is {ours.get(key)!r}" for key in different)
            raise FingerprintMismatch(f"{self.uri}: holds a run of other settings ({changes}); choose another output")

    def fingerprint(self) -> dict[str, Any]:
        """Return the fingerprint in run.json. Raises InputError if there is no run."""
        return cast("dict[str, Any]", self.about()["fingerprint"])

    def about(self) -> dict[str, Any]:
        """Return the content of run.json. Raises InputError if there is no run.

        `bundle` is the URI of the bundle, wherever it is now; runs begun before it was recorded have None.
        `learned` are the ids of the images that the bundle has learned from; their scores are not those of fresh ones.
        """
        try:
            document = json.loads(self._store.read(self.path("run.json")))
            added_later = {
                name: document.get(name) for name in ("false_alarm_rate", "calibration", "observer", "bundle")
            }
            added_later["learned"] = document.get("learned", [])
            return {"fingerprint": document["fingerprint"], "classes": document["classes"], **added_later}
        except NotFound as error:
            raise InputError(f"{self.uri}: no results there ({error}); `gradosr score` makes them") from error
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.uri}: run.json is damaged; choose another output") from error

    def look(self) -> Listing:
        """List the folder. A local folder that does not exist yet is empty; a missing bucket raises NotFound."""
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
            elif folder == "groups" and name.endswith(".json"):
                listing.groups.append(stored.uri)
            elif not folder:
                listing.finished |= name == "_SUCCESS"
                listing.claimed |= name == "run.json"
        return listing

    def _listed(self, name: str) -> Iterator[StoredObject]:
        try:
            yield from self._store.list(self.path(name))
        except NotFound:
            if scheme_of(self.uri).buckets:
                raise

    def recorded_groups(self, listing: Listing) -> list[Recording]:
        """Return what is on record of groups so far."""
        with threads(16, "record") as pool:
            return list(pool.map(self._recording, sorted(listing.groups)))

    def _recording(self, uri: str) -> Recording:
        try:
            document = json.loads(self._store.read(uri))
            if isinstance(document, list):
                return Recording(len(document), names=document, uri=uri)
            return Recording(document["groups"], [self.path("groups", name) for name in document["pieces"]], uri=uri)
        except (ValueError, KeyError, TypeError) as error:
            raise damaged(uri, error) from error

    def record_groups(self, listing: Listing, found: Regrouped) -> dict[str, str]:
        """Write the pieces of groups and append the new groups to the record; return the pieces' URIs by path.

        Raises RunFailed if another driver recorded groups since the folder was listed.
        """
        paths = [*found.new.pieces, *found.changed.pieces]
        with threads(8, "pieces") as pool:
            names = dict(zip(paths, pool.map(self._put_piece, paths), strict=True))
        if found.groups:
            body = json.dumps({"groups": found.groups, "pieces": [names[path] for path in found.new.pieces]}).encode()
            if not self._store.write(self.path("groups", f"{len(listing.groups):06}.json"), body, if_absent=True):
                raise RunFailed(f"{self.uri}: another driver recorded groups of images meanwhile; run this again")
        return {path: self.path("groups", name) for path, name in names.items()}

    def _put_piece(self, path: str) -> str:
        """Write a piece under a name made from its content, so that it is there whole and once; return the name."""
        body = Path(path).read_bytes()
        name = f"piece-{hashlib.sha256(body).hexdigest()[:20]}.parquet"
        self._store.write(self.path("groups", name), body, if_absent=True)
        return name

    def put_part(self, part: str, body: BinaryIO) -> None:
        """Publish a part, which commits its shard. An existing part counts just as well: same name, same rows."""
        self._store.write(self.path("parts", part + PART), body, if_absent=True)

    def put_bad_images(self, part: str, lines: BinaryIO) -> None:
        """List the bad images of a part about to be published; a list left by a worker that died is replaced."""
        self._store.write(self.path("quarantine", part + BAD_IMAGES), lines)

    def quarantine(self, shard: Shard, reason: str, attempts: int) -> None:
        """Write the terminal mark of a shard version."""
        mark = {"shard": shard.uri, "version": shard.version, "reason": reason, "attempts": attempts}
        self._store.write(self.path("quarantine", shard.part + MARK), json.dumps(mark, indent=2).encode())

    def reopen(self) -> None:
        """Move the old _SUCCESS away, because the table that it names is about to be outdated."""
        self._store.move(self.path("_SUCCESS"), self.path("superseded", "_SUCCESS"))

    def supersede(self, folder: str, names: Iterable[str], ending: str) -> None:
        """Move parts, marks or lists of bad images out of the table."""
        for name in sorted(names):
            self._store.move(self.path(folder, name + ending), self.path("superseded", name + ending))

    def stats(self, parts: Set[str], fresh: Mapping[str, PartStats]) -> TableStats:
        """Return the counts and seconds of every part.

        They come from `fresh` (parts just reported), else from stats.parquet, else from the part's footer.
        """
        reported, wanted = TableStats.of(fresh).only(parts), parts - fresh.keys() if fresh else parts
        recorded = self.recorded_stats().only(wanted)
        unknown = sorted(wanted - set(recorded.parts)) if len(recorded) < len(wanted) else []
        with threads(16, "footers") as pool:
            read = TableStats.of(dict(zip(unknown, pool.map(self._footer_stats, unknown), strict=True)))
        return recorded.plus(reported, read)

    def recorded_stats(self) -> TableStats:
        """Return what drivers recorded of parts when they ended."""
        try:
            return TableStats.read(io.BytesIO(self._store.read(self.path("stats.parquet"))))
        except NotFound:
            return self._old_stats()
        except (pa.ArrowInvalid, OSError, KeyError):  # not the only record: footers hold it too
            return TableStats.of({})

    def _old_stats(self) -> TableStats:
        """Return what stats.json held before there was stats.parquet."""
        try:
            recorded = json.loads(self._store.read(self.path("stats.json")))["parts"]
            return TableStats.of(
                {
                    part: PartStats(entry["counts"], entry["seconds"], entry.get("passed_over", {}))
                    for part, entry in recorded.items()
                }
            )
        except (NotFound, ValueError, KeyError, TypeError, AttributeError, pa.ArrowInvalid):
            return TableStats.of({})

    def _footer_stats(self, part: str) -> PartStats:
        with self.open_part(part) as body:
            metadata = pq.read_metadata(body).metadata
        names = (b"gradosr.counts", b"gradosr.seconds", b"gradosr.passed_over")
        return PartStats(*(json.loads(metadata.get(name, b"{}")) for name in names))

    def finish(self, summary: Mapping[str, Any], stats: TableStats, *, success: bool) -> None:
        """Write stats.parquet, stats.json and, if the table is whole, _SUCCESS last."""
        with tempfile.SpooledTemporaryFile(SPOOL_BYTES) as body:
            with spooled():
                stats.write(cast("BinaryIO", body))
            self._store.write(self.path("stats.parquet"), cast("BinaryIO", body))
        self._store.write(self.path("stats.json"), json.dumps(summary).encode())
        if success:
            self._store.write(self.path("_SUCCESS"), json.dumps({**summary, "parts": stats.parts}).encode())

    def table_parts(self, listing: Listing) -> list[str]:
        """Return the names of the parts of the table: those in _SUCCESS, or in an unfinished run all parts so far."""
        if not listing.finished:
            return sorted(listing.parts)
        return cast("list[str]", json.loads(self._store.read(self.path("_SUCCESS")))["parts"])

    def finished_parts(self) -> dict[str, StoredObject]:
        """Return the objects of the parts of a finished run's table, by name.

        Raises InputError if there is no run, if it is not finished, or if a part is missing.
        """
        self.fingerprint()
        listing = self.look()
        if not listing.finished:
            raise InputError(f"{self.uri}: not a finished run (no _SUCCESS); run `gradosr score` to its end first")
        found = {stored.uri.rpartition("/")[2].removesuffix(PART): stored for stored in self._listed("parts/")}
        parts = self.table_parts(listing)
        if missing := [part for part in parts if part not in found]:
            raise InputError(f"{self.uri}: {len(missing)} parts of its table are missing, among them {missing[0]}")
        return {part: found[part] for part in parts}

    def open_part(self, part: str) -> BinaryIO:
        """Open a part's file for reading; the caller closes it."""
        return self._store.open(self._store.stat(self.path("parts", part + PART)))

    def mark(self, part: str) -> dict[str, Any]:
        """Return the quarantine mark of a shard version: shard, version, reason, attempts."""
        return cast("dict[str, Any]", json.loads(self._store.read(self.path("quarantine", part + MARK))))

    def table(self, columns: Sequence[str]) -> tuple[pa.Table, bool]:
        """Return columns of the table, and whether the run is finished; if not, they come from the parts so far."""
        self.fingerprint()
        listing = self.look()
        parts = self.table_parts(listing)
        if not parts:
            raise InputError(f"{self.uri}: no finished parts yet; run `gradosr score` first")
        with threads(8, "parts") as pool:
            tables = list(pool.map(lambda part: self._read_part(part, columns), parts))
        return pa.concat_tables(tables), listing.finished

    def _read_part(self, part: str, columns: Sequence[str]) -> pa.Table:
        # Without Arrow's threads: one of them could keep `body` alive and crash Python on exit.
        with self.open_part(part) as body:
            return pq.ParquetFile(body, pre_buffer=False).read(list(columns), use_threads=False)
