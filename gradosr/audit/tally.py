"""Counting of a run's table in one pass, with memory that does not grow with the table.

Counts are exact. Lists are bounded; their rows are chosen by content (lowest p-value, smallest hash of the key, first
in their shard), never by the order in which threads read parts, so that the same table gives the same audit.
"""

import threading
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gradosr.audit.p_values import PValueCounts
from gradosr.audit.places import Days, Prefixes, days_of, shard_folder
from gradosr.audit.proportions import wilson
from gradosr.audit.rows import OpenPart, RunTable, id_of, key_hash, shown
from gradosr.bundle.manifest import CalibrationSummary
from gradosr.results.part import stored_numbers

COUNTED = ("key", "shard", "row", "status", "predicted_index", "unknown_score", "p_value", "is_unknown")
DESCRIBED = ("key", "shard", "row", "label", "predicted_class", "unknown_score", "p_value", "width", "height")
"""Columns of a row that is shown."""
HIGHEST = 100
BAD_IMAGES = 1000
SURELY_KNOWN = 0.5
"""p-value from which on an image counts as known where embeddings are compared with those of known images."""
MOST_KNOWN = 3_000
"""Number of such images that are compared with."""
SCORE_BITS = 20
"""Leading bits of a float32 score that select its cell: 11 of the mantissa's 23 bits, a resolution of 1 in 2,000."""


class ScoreCells:
    """Counts of unknown scores by their leading bits, which gives one set of cells for scores of any size."""

    def __init__(self) -> None:
        self.counts = np.zeros(1 << SCORE_BITS, np.int64)

    def add(self, scores: NDArray[np.float32]) -> None:
        """Add scores to the counts."""
        bits = np.ascontiguousarray(scores, np.float32).view(np.uint32)
        negative = bits >> 31 == 1
        ordered = np.where(negative, ~bits, bits | np.uint32(1 << 31))  # integers in the same order as the floats
        cells, counts = np.unique(ordered >> np.uint32(32 - SCORE_BITS), return_counts=True)
        self.counts[cells] += counts

    def counted(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return the score in the middle of each non-empty cell, ascending, and the number of its images."""
        cells = np.flatnonzero(self.counts)
        shift = 32 - SCORE_BITS
        ordered = (cells.astype(np.uint32) << np.uint32(shift)) | np.uint32(1 << (shift - 1))
        bits = np.where(ordered >> 31 == 1, ordered ^ np.uint32(1 << 31), ~ordered)
        return bits.astype(np.uint32).view(np.float32).astype(np.float64), self.counts[cells]


@dataclass(frozen=True, eq=False)
class _Source:
    """Rows of one part that a sample wanted when it saw them; most of them give way to others."""

    rows: pa.Table
    modified: int | None
    """The time at which their shard was last modified."""


class Sample:
    """A sample of rows, those with the smallest hashes of their keys, with vectors if these are wanted."""

    def __init__(self, limit: int, kind: str, first: Collection[str] = ()) -> None:
        """Choose `limit` rows of an input of this kind, those with the keys `first` before all others."""
        self.limit, self._kind, self._first = limit, kind, frozenset(first)
        self.considered = 0
        """Number of rows that could have been chosen."""
        self._bound = (1 << 64) - 1
        self._chunks: list[tuple[NDArray[np.uint64], list[tuple[_Source, int]], NDArray[np.float16]]] = []
        self._held = 0

    def wanted(self, keys: pa.ChunkedArray) -> tuple[NDArray[np.intp], NDArray[np.uint64]]:
        """Return the positions of keys that may still be chosen, and the first eight bytes of their hashes."""
        hashes = ((key in self._first, key_hash(key)) for key in keys.to_pylist())
        digests = b"".join(bytes(4) + digest[:4] if first else digest[:8] for first, digest in hashes)
        ids = np.frombuffer(digests, ">u8").astype(np.uint64)
        places = np.flatnonzero(ids <= np.uint64(self._bound))
        return places, ids[places]

    def add(
        self, ids: NDArray[np.uint64], rows: pa.Table, modified: int | None, vectors_NF: NDArray[np.float16]
    ) -> None:
        """Add rows that `wanted` has chosen, all of one shard that was last modified at `modified`."""
        source = _Source(rows.select(DESCRIBED), modified)
        self._chunks.append((ids, [(source, place) for place in range(len(rows))], vectors_NF))
        self._held += len(ids)
        if self._held > 2 * self.limit:
            self._settle()

    def settled(self) -> tuple[list[dict[str, Any]], NDArray[np.float16]]:
        """Return the rows in order of their hashes, and their vectors [N, F]."""
        if not self._held:
            return [], np.empty((0, 0), np.float16)
        self._settle()
        _, rows, vectors_NF = self._chunks[0]
        of_source: dict[_Source, list[int]] = {}
        for position, (source, _) in enumerate(rows):
            of_source.setdefault(source, []).append(position)
        described: dict[int, dict[str, Any]] = {}
        for source, positions in of_source.items():
            taken = source.rows.take([rows[position][1] for position in positions])
            described |= zip(positions, dated(taken, self._kind, source.modified), strict=True)
        return [described[position] for position in range(len(rows))], vectors_NF

    def _settle(self) -> None:
        ids = np.concatenate([ids for ids, *_ in self._chunks])
        rows = [row for _, rows, _ in self._chunks for row in rows]
        vectors_NF = np.concatenate([vectors_NF for *_, vectors_NF in self._chunks])
        order = np.argsort(ids, kind="stable")[: self.limit]
        self._chunks = [(ids[order], [rows[place] for place in order], vectors_NF[order])]
        self._held = len(order)
        if self._held == self.limit:
            self._bound = int(ids[order[-1]])


class Tally:
    """Everything that one pass gathers; several threads may call `read`."""

    def __init__(
        self,
        classes: Sequence[str],
        calibration: CalibrationSummary | None,
        kind: str,
        sample: int,
        sought: Collection[str] = (),
        *,
        vectors: str | None = "features",
        first: Collection[str] = (),
    ) -> None:
        """Start without counts; `kind` is that of the input, `sample` the number of rows kept for clustering.

        `sought` are keys of which `over` is to tell on which side of the threshold they are. Rows are sampled that have
        `vectors`, a column, or all if it is None, those with the keys `first` before others; where these are not the
        features, known rows to compare with, too.
        """
        self.rows = self.left_out = 0
        """Number of rows that the table leaves out."""
        self.over: dict[str, bool] = {}
        """Whether an image is over the threshold, by key; of those sought that have a score."""
        self._sought = pa.array(sorted(sought), pa.string())
        self.statuses, self.unknown = Counter[str](), 0
        self.scores = ScoreCells()
        self.p_values = PValueCounts(calibration, classes) if calibration else None
        self.p_histogram = np.zeros(20, np.int64)
        """Counts of all p-values in twentieths, for a run whose calibration is not recorded."""
        self.by_class = np.zeros((len(classes), 2), np.int64)
        """Images and unknown images by predicted class [K, 2]."""
        self.by_shard: dict[str, list[int]] = {}
        self.prefixes, self.days = Prefixes(kind), Days()
        self.part_rows: dict[str, int] = {}
        self.sample = Sample(sample, kind, first)
        """Rows over the threshold."""
        self.known = Sample(0 if vectors == "features" else MOST_KNOWN, kind)
        """Rows that are surely known."""
        self._vectors, self.without_vectors = vectors, 0
        """Number of rows over the threshold whose vectors are wanted and not stored."""
        self._highest: pa.Table | None = None
        self._bad, self._lock = list[tuple[str, int, dict[str, Any]]](), threading.Lock()

    def read(self, part: str, opened: OpenPart) -> None:
        """Count the rows of one part."""
        columns = [*dict.fromkeys([*COUNTED, *DESCRIBED, "error"])]
        self.part_rows[part] = 0
        for number, rows in opened.groups(columns):
            over_N, there_N = pc.fill_null(rows["is_unknown"], fill_value=False).to_numpy(), self._there(opened, number)
            over = np.flatnonzero(over_N & there_N)
            chosen = self._chosen(self.sample, opened, number, rows, over)
            surely = np.flatnonzero((np.nan_to_num(rows["p_value"].to_numpy()) >= SURELY_KNOWN) & there_N)
            known = self._chosen(self.known, opened, number, rows, surely)
            with self._lock:
                self.part_rows[part] += len(rows)
                self._add(rows, opened.modified)
                self.sample.considered += len(over)
                self.without_vectors += int(over_N.sum()) - len(over)
                self._find(rows)
                for sample, found in ((self.sample, chosen), (self.known, known)):
                    if found is not None:
                        sample.add(*found)
        with self._lock:
            self.left_out += opened.file.metadata.num_rows - self.part_rows[part]

    def _there(self, opened: OpenPart, number: int) -> NDArray[np.bool_]:
        """Tell which rows of a group have a vector, if one is wanted; a row over the threshold has its features."""
        if self._vectors in (None, "features"):
            return np.array([self._vectors is None or "features" in opened.columns])
        if self._vectors not in opened.columns:
            return np.array([False])
        there_N: NDArray[np.bool_] = opened.group(number, [self._vectors])[self._vectors].is_valid().to_numpy()
        return there_N

    def _find(self, rows: pa.Table) -> None:
        if len(self._sought):
            found = rows.filter(pc.and_(pc.is_in(rows["key"], self._sought), rows["is_unknown"].is_valid()))
            self.over.update(zip(found["key"].to_pylist(), found["is_unknown"].to_pylist(), strict=True))

    def _chosen(
        self, sample: Sample, opened: OpenPart, number: int, rows: pa.Table, places: NDArray[np.intp]
    ) -> tuple[NDArray[np.uint64], pa.Table, int | None, NDArray[np.float16]] | None:
        """Return the arguments of `Sample.add` for those rows of a group that a sample wants, without the lock."""
        if not sample.limit or not len(places):
            return None
        chosen, ids = sample.wanted(rows["key"].take(places))
        if not len(chosen):
            return None
        taken, vectors_NF = rows.take(places[chosen]), np.empty((len(chosen), 0), np.float16)
        if self._vectors is not None:
            vectors = opened.group(number, [self._vectors])[self._vectors].take(places[chosen]).combine_chunks()
            valid = vectors.is_valid().to_numpy(zero_copy_only=False)
            if not valid.any():
                return None
            ids, taken, vectors_NF = ids[valid], taken.filter(pa.array(valid)), stored_numbers(vectors)
        return ids, taken, opened.modified, vectors_NF

    def _add(self, rows: pa.Table, modified: int | None) -> None:
        self.rows += len(rows)
        for status in pc.value_counts(rows["status"]).to_pylist():
            self.statuses[status["values"]] += status["counts"]
        ok = pc.equal(rows["status"], "ok")
        if not pc.all(ok).as_py():
            self._add_bad(rows.filter(pc.invert(ok)))
            rows = rows.filter(ok)
        if len(rows):
            self._count(rows, rows["is_unknown"].to_numpy(), modified)
            self._keep_highest(rows)

    def _count(self, rows: pa.Table, unknown: NDArray[np.bool_], modified: int | None) -> None:
        p_values, index = rows["p_value"].to_numpy(), rows["predicted_index"].to_numpy()
        self.unknown += int(unknown.sum())
        self.scores.add(rows["unknown_score"].to_numpy())
        if self.p_values is not None:
            self.p_values.add(p_values, index)
        self.p_histogram += np.histogram(p_values, np.linspace(0, 1, 21))[0]
        classes = len(self.by_class)
        self.by_class[:, 0] += np.bincount(index, minlength=classes)[:classes]
        self.by_class[:, 1] += np.bincount(index[unknown], minlength=classes)[:classes]
        shard = rows["shard"][0].as_py()  # all rows of a part belong to one shard
        counts = self.by_shard.setdefault(shown(shard) or "", [0, 0])
        counts[0] += len(rows)
        counts[1] += int(unknown.sum())
        self.prefixes.add(rows["key"], shard, unknown)
        self.days.add(rows["key"], shard_folder(self.prefixes.kind, shard), unknown, modified)

    def _keep_highest(self, rows: pa.Table) -> None:
        if self._highest is not None and len(self._highest) == HIGHEST:
            rows = rows.filter(pc.less_equal(rows["p_value"], self._highest["p_value"][-1]))
        if len(rows):
            rows = rows.select(DESCRIBED)
            both = rows if self._highest is None else pa.concat_tables([self._highest, rows])
            # In a pooled calibration this is the order of the scores.
            order = [("p_value", "ascending"), ("unknown_score", "descending"), ("key", "ascending")]
            self._highest = both.take(pc.select_k_unstable(both, min(HIGHEST, len(both)), order)).combine_chunks()

    def _add_bad(self, rows: pa.Table) -> None:
        for row in rows.slice(0, BAD_IMAGES).select(["shard", "row", "key", "status", "error"]).to_pylist():
            facts = {"key": shown(row["key"]), "status": row["status"], "error": shown(row["error"])}
            self._bad.append((row["shard"], row["row"], facts))
        if len(self._bad) > 2 * BAD_IMAGES:
            self._bad = sorted(self._bad, key=lambda one: one[:2])[:BAD_IMAGES]

    @property
    def images(self) -> int:
        """The number of rows with a score."""
        return self.statuses["ok"]

    @property
    def bad_images(self) -> list[dict[str, Any]]:
        """The first rows without a score, by shard and row."""
        return [facts for *_, facts in sorted(self._bad, key=lambda one: one[:2])[:BAD_IMAGES]]

    @property
    def highest(self) -> list[dict[str, Any]]:
        """The rows with the lowest p-values, lowest first, and the highest unknown scores first among equal ones."""
        return [] if self._highest is None else described(self._highest)


def count(
    table: RunTable,
    calibration: CalibrationSummary | None,
    sample: int,
    sought: Collection[str] = (),
    *,
    vectors: str | None = "features",
    first: Collection[str] = (),
) -> Tally:
    """Count all parts of a table in one pass; the other arguments are as in `Tally`."""
    classes = table.about["classes"]
    tally = Tally(classes, calibration, table.kind, sample, sought, vectors=vectors, first=first)
    table.each(tally.read)
    return tally


def dated(rows: pa.Table, kind: str, modified: int | None) -> list[dict[str, Any]]:
    """Return rows of one shard as `described` does, each with its `day` if that is known."""
    if not len(rows):
        return []
    shard = shard_folder(kind, rows["shard"][0].as_py())
    days = days_of(rows["key"], shard, modified)
    return [row | {"day": day} for row, day in zip(described(rows), days, strict=True)]


def described(rows: pa.Table) -> list[dict[str, Any]]:
    """Return rows as dictionaries in the form that audit.json shows."""
    return list(_described(rows))


def _described(rows: pa.Table) -> Iterator[dict[str, Any]]:
    for row in rows.select(DESCRIBED).to_pylist():
        texts = {name: shown(row[name]) for name in ("key", "shard", "label", "predicted_class")}
        yield {"id": id_of(row["key"]), **row, **texts}


def worst(counts: Sequence[tuple[str, int, int]], limit: int) -> list[tuple[str, int, int]]:
    """Return name, images and unknown images of the `limit` entries with the highest lower bound of their rate."""
    return sorted(counts, key=lambda one: (-wilson(one[2], one[1])[0], one[0]))[:limit]
