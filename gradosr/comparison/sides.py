"""The images of two runs over one archive side by side, streamed part by part in bounded memory."""

import heapq
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gradosr.audit.rows import THREADS, OpenPart, RunTable, id_of, shown
from gradosr.comparison.figures import Flags, Labelled
from gradosr.errors import InputError
from gradosr.labels.verdicts import is_unknown
from gradosr.store.threads import threads

MOST_SHOWN = 50
"""Images listed that change to one side."""
ROWS = 10_000
COLUMNS = ("key", "shard", "width", "height", "predicted_class", "unknown_score", "p_value", "is_unknown", "label")


class Truth:
    """The labels of images: those of people, else those of the archive."""

    def __init__(
        self, said: Mapping[str, str], classes: tuple[Collection[str], Collection[str]], learned: Collection[str]
    ) -> None:
        """Take labels by key, the known classes of both runs, and the ids of images that a detector learned from."""
        self._said, self._keys = said, pa.array(said.keys(), pa.string())
        self._classes, self._learned = classes, frozenset(learned)

    def of(self, rows: pa.Table) -> tuple[NDArray[np.intp], Flags, Flags, int]:
        """Return the places of labelled images, whether they are unknown, and whether a detector learned from them.

        Images of a class that one of the runs alone knows are left out, and their number is returned last.
        """
        candidates = pc.or_(pc.is_in(rows["key"], value_set=self._keys), rows["label"].is_valid())
        places = np.flatnonzero(candidates.to_numpy())
        chosen = rows.select(["key", "label"]).take(places)
        found = []
        for place, key, label in zip(places, chosen["key"].to_pylist(), chosen["label"].to_pylist(), strict=True):
            unknown = {is_unknown(self._said.get(key, label), classes) for classes in self._classes}
            if len(unknown) == 1:
                found.append((place, unknown.pop(), bool(self._learned) and id_of(key) in self._learned))
        unknown_L, learned_L = (np.array([one[column] for one in found], bool) for column in (1, 2))
        return np.array([place for place, *_ in found], np.intp), unknown_L, learned_L, len(places) - len(found)


@dataclass
class Sides:
    """Counts of what two runs call the same images, and the images that change sides."""

    rows: int = 0
    table: NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, 2), np.int64))
    """Images that are known (0) or unknown (1) before, and after."""
    classes: tuple[Counter[str], Counter[str], Counter[str]] = field(
        default_factory=lambda: (Counter(), Counter(), Counter())
    )
    """Images by predicted class: those that become known, those that become unknown, all."""
    changed: tuple[list[dict[str, Any]], list[dict[str, Any]]] = field(default_factory=lambda: ([], []))
    """Images that become known, and unknown, by change of p-value, the largest first."""
    ambiguous: int = 0
    """Number of labelled images of a class that one of the runs alone knows."""
    labelled: list[tuple[Any, ...]] = field(default_factory=list)
    """Arrays for Labelled, and whether a detector learned from the images."""

    def plus(self, other: "Sides") -> None:
        """Add the counts and images of another part."""
        self.rows += other.rows
        self.table += other.table
        for mine, theirs in zip(self.classes, other.classes, strict=True):
            mine.update(theirs)
        for ours, more in zip(self.changed, other.changed, strict=True):
            ours[:] = heapq.nsmallest(MOST_SHOWN, [*ours, *more], key=_order)
        self.ambiguous += other.ambiguous
        self.labelled += other.labelled

    def add(self, before: pa.Table, after: pa.Table, truth: Truth) -> None:
        """Add the same rows of both runs."""
        self.rows += len(after)
        scored = pc.and_(before["is_unknown"].is_valid(), after["is_unknown"].is_valid())
        before, after = before.filter(scored), after.filter(scored)
        was, now = (rows["is_unknown"].to_numpy() for rows in (before, after))
        self.table += np.bincount(2 * was + now, minlength=4).reshape(2, 2)
        for side in (0, 1):
            moved = (was != now) & (now == side)
            if moved.any():
                mask = pa.array(moved)
                self._move(side, before.filter(mask), after.filter(mask))
        self.classes[2].update(_counts(after))
        places, unknown, learned, ambiguous = truth.of(after)
        self.ambiguous += ambiguous
        if len(places):
            scores = [rows["unknown_score"].take(places).to_numpy() for rows in (before, after)]
            self.labelled.append((unknown, *scores, was[places], now[places], learned))

    def _move(self, side: int, before: pa.Table, after: pa.Table) -> None:
        self.classes[side].update(_counts(after))
        change = np.abs(after["p_value"].to_numpy() - before["p_value"].to_numpy())
        first = np.argsort(-change, kind="stable")[:MOST_SHOWN]
        pairs = zip(before.take(first).to_pylist(), after.take(first).to_pylist(), strict=True)
        rows = [_described(was, now) for was, now in pairs]
        self.changed[side][:] = heapq.nsmallest(MOST_SHOWN, [*self.changed[side], *rows], key=_order)

    def images(self) -> tuple[Labelled, Flags]:
        """Return the labelled images, and whether a detector has learned from them."""
        kinds = (bool, np.float32, np.float32, bool, bool, bool)
        empty = tuple(np.zeros(0, kind) for kind in kinds)
        unknown, *columns, learned = (np.concatenate(one) for one in zip(empty, *self.labelled, strict=True))
        return Labelled(unknown, (columns[0], columns[1]), (columns[2], columns[3])), learned


def _counts(rows: pa.Table) -> dict[str, int]:
    counted = rows["predicted_class"].value_counts().to_pylist()
    return {one["values"]: one["counts"] for one in counted}


def _described(was: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": id_of(now["key"]),
        **{name: now[name] for name in ("shard", "width", "height")},
        **{name: shown(now[name]) for name in ("key", "label", "predicted_class")},
        **{f"{name}_before": was[name] for name in ("p_value", "unknown_score")},
        **{name: now[name] for name in ("p_value", "unknown_score")},
    }


def _order(row: Mapping[str, Any]) -> tuple[float, str]:
    return -abs(row["p_value"] - row["p_value_before"]), row["key"]


def side_by_side(before: RunTable, after: RunTable, parts: Sequence[str], truth: Truth) -> Sides:
    """Go through the same parts of both runs. Raises InputError if a part has other rows in one of them."""

    def one(part: str) -> Sides:
        found = Sides()
        with before.open(part) as was, after.open(part) as now:
            for rows in _aligned(was, now, f"{after.folder.uri}: part {part}"):
                found.add(*rows, truth)
        return found

    whole = Sides()
    with threads(THREADS, "parts") as pool:
        for found in pool.map(one, parts):
            whole.plus(found)
    return whole


def _aligned(before: OpenPart, after: OpenPart, where: str) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Yield the rows of a part as both runs have them, whatever their row groups."""
    fault = InputError(f"{where} has other rows than in the run that it is compared with; score both anew")
    if before.file.metadata.num_rows != after.file.metadata.num_rows:
        raise fault
    left = before.file.metadata.num_rows
    streams = [part.file.iter_batches(ROWS, columns=list(COLUMNS), use_threads=False) for part in (before, after)]
    was, now = (schema.empty_table() for schema in (_columns(before), _columns(after)))
    while left:
        was, now = (
            rows if len(rows) else pa.Table.from_batches([next(stream)])
            for rows, stream in zip((was, now), streams, strict=True)
        )
        size = min(len(was), len(now))
        if not was["key"][:size].equals(now["key"][:size]):
            raise fault
        yield was[:size], now[:size]
        was, now, left = was[size:], now[size:], left - size


def _columns(part: OpenPart) -> pa.Schema:
    return pa.schema([part.file.schema_arrow.field(name) for name in COLUMNS])
