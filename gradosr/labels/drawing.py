"""The choice of the images to look at: half the highest unknown scores, half drawn at random by strata of the p-value.

One round, of n images, among the images of the table that were neither handed out nor labelled:

1. the n / 2 highest unknown scores are taken;
2. what is left is divided at fixed p-values into H strata of N_h images, two of them over the threshold and three
   below; n_h are drawn from each by simple random sampling without replacement (those with the smallest random
   numbers). n_h grows with the square root of N_h (power allocation: Bankier 1988, The American Statistician 42), so
   that few images over the threshold do not get few draws; p-values order images as scores do (with a calibration per
   class, images of one predicted class), and their edges need no look at the table.

Several rounds make one sample of the same kind, because the edges stay: let t be the place of the lowest of the last
round's highest scores. All images above t have been handed out. Below t the images drawn from a stratum so far are a
simple random sample of its images there: each round draws at random among those that were left, and t depends on
draws above it alone. So an image above t was chosen with probability 1, and one below it with m_h / M_h: the images
drawn from the stratum, and all its images, below t (`estimates.cells`). This holds while rounds draw from the same
images; a round that finds other parts in the table, or images labelled otherwise in between, begins a new frame, in
which the images known before stand for themselves alone.

One pass over the table with bounded memory: n / 2 candidates for the highest, and per stratum n, of which at most n / 2
turn out to be among the highest.
"""

import hashlib
import threading
from collections.abc import Sequence, Set
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gradosr.audit.rows import OpenPart, RunTable, id_of
from gradosr.audit.tally import DESCRIBED
from gradosr.errors import InputError
from gradosr.labels.records import Drawn, Place, Round, Stratum, new_token

FEWEST, MOST = 10, 1000
"""Numbers of images in a round: one draw for each stratum at least, and as many pictures as one page holds."""
_CANDIDATE = np.dtype(
    [("score", "f8"), ("part", "i8"), ("row", "i8"), ("group", "i8"), ("place", "i8"), ("random", "f8"),
     ("stratum", "i8"), ("over", "?")]
)  # fmt: skip
_READ = ("key", "shard", "status", "unknown_score", "p_value", "is_unknown")

Candidates = NDArray[np.void]


def edges(false_alarm_rate: float | None) -> list[float]:
    """Return the upper p-values of the strata, the first two over the threshold."""
    rate = 0.05 if false_alarm_rate is None else false_alarm_rate
    return [rate / 4, rate, rate + (1 - rate) / 5, rate + (1 - rate) / 2, 1.0]


def allocation(images: Sequence[int], draws: int) -> list[int]:
    """Share draws among strata by the square roots of their sizes: two each first, and never more than there are."""
    shares = [0] * len(images)
    for _ in range(min(draws, sum(images))):
        free = [place for place, size in enumerate(images) if shares[place] < size]
        most = max(free, key=lambda place: (-min(shares[place], 2), images[place] ** 0.5 / (shares[place] + 1)))
        shares[most] += 1
    return shares


class Chooser:
    """One pass over a table that finds a round's images; several threads may call `read`."""

    def __init__(self, table: RunTable, left_out: Set[str], number: int, seed: tuple[int, int]) -> None:
        """Choose `number` images of a table among all but those whose keys are in `left_out`."""
        self.table, self._left_out, self._number, self._seed = table, left_out, number, seed
        self.edges = edges(table.about["false_alarm_rate"])
        self.counts = np.zeros(len(self.edges), np.int64)
        self.known: list[Place] = []
        """The images of the table that were left out."""
        self._highest = np.empty(0, _CANDIDATE)
        self._lowest = [np.empty(0, _CANDIDATE) for _ in self.edges]
        self._numbers = {part: number for number, part in enumerate(table.parts)}
        self._lock = threading.Lock()

    def read(self, part: str, opened: OpenPart) -> None:
        """Look at one part."""
        first = 0
        for group, rows in opened.groups(_READ):
            found, over_known = self._candidates(part, group, first, rows)
            first += len(rows)
            with self._lock:
                self.known += over_known
                self.counts += np.bincount(found["stratum"], minlength=len(self.edges))
                self._highest = _first(np.concatenate([self._highest, found]), _by_score, self._number // 2)
                for place, lowest in enumerate(self._lowest):
                    mine = np.concatenate([lowest, found[found["stratum"] == place]])
                    self._lowest[place] = _first(mine, _by_random, self._number)

    def _candidates(self, part: str, group: int, first: int, rows: pa.Table) -> tuple[Candidates, list[Place]]:
        """Return the rows of a row group that may be chosen, and those that were left out."""
        number = self._numbers[part]
        ok = pc.equal(rows["status"], "ok")
        places, rows = np.flatnonzero(ok.to_numpy()), rows.filter(ok)
        found = np.empty(len(places), _CANDIDATE)
        found["place"], found["row"], found["part"], found["group"] = places, first + places, number, group
        found["score"], found["over"] = rows["unknown_score"].to_numpy(), rows["is_unknown"].to_numpy()
        cells = np.searchsorted(self.edges, rows["p_value"].to_numpy())
        found["stratum"] = np.where(found["over"], np.minimum(cells, 1), np.clip(cells, 2, len(self.edges) - 1))
        found["random"] = np.random.default_rng((*self._seed, number, group)).random(len(found))
        if not self._left_out:
            return found, []
        keys = rows["key"].to_pylist()
        gone = np.array([key in self._left_out for key in keys], bool)
        known = [
            Place(key=keys[place], shard=rows["shard"][place].as_py(), **_facts(found[place]))
            for place in np.flatnonzero(gone).tolist()
        ]
        return found[~gone], known

    def chosen(self) -> tuple[Candidates, list[Stratum]]:
        """Return the images of the round, the highest first and with stratum -1, and the strata drawn from."""
        highest = self._highest.copy()
        left = self.counts - np.bincount(highest["stratum"], minlength=len(self.edges))
        shares = allocation(left.tolist(), self._number - len(highest))
        taken = {(one["part"], one["row"]) for one in highest}
        drawn = [
            np.array([one for one in lowest if (one["part"], one["row"]) not in taken][:share], _CANDIDATE)
            for lowest, share in zip(self._lowest, shares, strict=True)
        ]
        highest["stratum"] = -1
        strata = [
            Stratum(p_values_up_to=edge, images=images, drawn=share)
            for edge, images, share in zip(self.edges, left.tolist(), shares, strict=True)
        ]
        return np.concatenate([highest, *drawn]), strata


def _by_score(found: Candidates) -> NDArray[np.intp]:
    return np.lexsort((found["row"], found["part"], -found["score"]))


def _by_random(found: Candidates) -> NDArray[np.intp]:
    return np.argsort(found["random"], kind="stable")


def _first(found: Candidates, order: Any, most: int) -> Candidates:
    kept: Candidates = found[order(found)[:most]]
    return kept


def draw(
    table: RunTable, rounds: Sequence[Round], labelled: Set[str], number: int, seed: int
) -> tuple[Round, list[dict[str, Any]]]:
    """Return the next round, of `number` images or as many as are left, and its rows.

    `labelled` are the keys of images with a label. Raises InputError if no image is left.
    """
    handed = {image.key for made in rounds for image in made.images}
    place = len(rounds) + 1
    chooser = Chooser(table, handed | labelled, number, (seed, place))
    table.each(chooser.read)
    found, strata = chooser.chosen()
    if not len(found):
        raise InputError(f"{table.folder.uri}: no image is left to look at: all are handed out or labelled")
    rows = _described(table, found)
    made = Round(
        number=place,
        parts=hashlib.sha256("\n".join(table.parts).encode()).hexdigest(),
        seed=seed,
        when=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        token=new_token(),
        strata=tuple(strata),
        images=tuple(_image(row, one) for row, one in zip(rows, found, strict=True)),
        frame=place,
        before=(),
    )
    return _framed(made, rounds, chooser.known), rows


def _framed(made: Round, rounds: Sequence[Round], known: Sequence[Place]) -> Round:
    """Put a round into the frame of the last one if it drew from the same images, else into a new one."""
    ours = {image.key for one in rounds if rounds and one.frame == rounds[-1].frame for image in one.images}
    before = tuple(sorted((one for one in known if one.key not in ours), key=lambda one: one.order))
    if rounds and rounds[-1].parts == made.parts and before == rounds[-1].before:
        return made.model_copy(update={"frame": rounds[-1].frame, "before": before})
    return made.model_copy(update={"before": tuple(sorted(known, key=lambda one: one.order))})


def _image(row: dict[str, Any], one: Any) -> Drawn:
    stratum = None if one["stratum"] < 0 else int(one["stratum"])
    return Drawn(key=row["key"], shard=row["shard"], stratum=stratum, **_facts(one))


def _facts(one: Any) -> dict[str, Any]:
    return {name: one[name].item() for name in ("score", "over", "part", "row")}


def _described(table: RunTable, found: Candidates) -> list[dict[str, Any]]:
    """Return the rows of candidates in their order, each with its id and `at`: part, row group and place in it."""
    rows: dict[int, dict[str, Any]] = {}
    for number in np.unique(found["part"]).tolist():
        with table.open(table.parts[number]) as opened:
            mine = np.flatnonzero(found["part"] == number)
            for group in np.unique(found["group"][mine]).tolist():
                here = mine[found["group"][mine] == group]
                taken = opened.group(group, DESCRIBED).take(pa.array(found["place"][here]))
                for place, row in zip(here.tolist(), taken.to_pylist(), strict=True):
                    at = (table.parts[number], group, int(found["place"][place]))
                    rows[place] = {"id": id_of(row["key"]), **row, "at": at}
    return [rows[place] for place in range(len(found))]
