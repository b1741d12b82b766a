"""Figures of two detectors on the same labelled images, with 95 % intervals that know that the images are the same.

Higher scores mean more unknown. U unknown images, N known ones.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm

from gradosr.audit.proportions import Z, wilson

Scores = NDArray[np.floating]
Flags = NDArray[np.bool_]
LEAST = 2
"""Least number of known and of unknown images that tell how much a figure varies."""


@dataclass(frozen=True)
class Labelled:
    """Labelled images with what two runs say of them; each [U + N]."""

    unknown: Flags
    """The truth by the labels."""
    scores: tuple[Scores, Scores]
    """Unknown scores, before and after."""
    called: tuple[Flags, Flags]
    """Whether a run calls the image unknown."""

    def __getitem__(self, rows: Flags) -> "Labelled":
        before, after = ((self.scores[run][rows], self.called[run][rows]) for run in (0, 1))
        return Labelled(self.unknown[rows], (before[0], after[0]), (before[1], after[1]))


def figures(images: Labelled) -> dict[str, Any]:
    """Return the numbers of images and the figures before, after and their difference; None where there are too few."""
    unknown = int(images.unknown.sum())
    known = len(images.unknown) - unknown
    before, after = images.called
    return {
        "images": known + unknown,
        "known": known,
        "unknown": unknown,
        "auroc": _auroc(images) if min(known, unknown) >= LEAST else None,
        "found": _shares(before[images.unknown], after[images.unknown]) if unknown else None,
        "false_alarms": _shares(before[~images.unknown], after[~images.unknown]) if known else None,
    }


def _auroc(images: Labelled) -> dict[str, Any]:
    """Return the areas under both ROC curves, and their difference by DeLong, DeLong and Clarke-Pearson (1988).

    U and N placements of each detector give the variance of the difference, without any assumption on the scores.
    """
    both = [placements(scores, images.unknown) for scores in images.scores]
    sizes = [len(values) for values in both[0]]
    areas = [float(above_U.mean()) for above_U, _ in both]
    variance = sum(
        float(np.var(after - before, ddof=1)) / len(after) for before, after in zip(both[0], both[1], strict=True)
    )
    change, error = areas[1] - areas[0], math.sqrt(variance)
    p_value = float(2 * norm.sf(abs(change) / error)) if error else float(change == 0)
    return {
        **{name: _told(area, *auroc_interval(area, *sizes)) for name, area in zip(RUNS, areas, strict=True)},
        "difference": {**_told(change, change - Z * error, change + Z * error), "p_value": p_value},
    }


RUNS = ("before", "after")


def placements(scores: Scores, unknown: Flags) -> tuple[Scores, Scores]:
    """Return for each unknown image the share of known ones that score lower, [U], and vice versa, [N]; ties half."""
    high_U, low_N = np.sort(scores[unknown]), np.sort(scores[~unknown])

    def below(values: Scores, others: Scores) -> Scores:
        sides = [np.searchsorted(others, values, side) for side in ("left", "right")]
        return (sides[0] + sides[1]) / 2 / len(others)

    return below(scores[unknown], low_N), 1 - below(scores[~unknown], high_U)


def auroc_interval(area: float, unknown: int, known: int) -> tuple[float, float]:
    """Return the 95 % interval of an area (Newcombe 2006, Statistics in Medicine 25, method 5).

    It has Hanley and McNeil's variance at the limits themselves, so that an area of 1 is not one without doubt.
    """
    size = (unknown + known) / 2 - 1

    def half(at: float) -> float:
        shape = 1 + size * ((1 - at) / (2 - at) + at / (1 + at))
        return Z * math.sqrt(at * (1 - at) * shape / (unknown * known))

    # At 0 and 1 themselves the variance is 0, and so they are roots of no meaning.
    low = brentq(lambda at: area - at - half(at), 0.0, min(area, 1 - 1e-12)) if area > 0 else 0.0
    high = brentq(lambda at: at - area - half(at), max(area, 1e-12), 1.0) if area < 1 else 1.0
    return float(low), float(high)


def _shares(before: Flags, after: Flags) -> dict[str, Any]:
    """Return the shares of flags, and their difference (Newcombe 1998, Statistics in Medicine 17:2635, method 10)."""
    total, shares = len(before), [float(flags.mean()) for flags in (before, after)]
    intervals = [wilson(int(flags.sum()), total) for flags in (before, after)]
    change = shares[1] - shares[0]
    phi = correlation(before, after)
    (low_before, high_before), (low_after, high_after) = intervals
    down = _joined(shares[1] - low_after, high_before - shares[0], phi)
    up = _joined(high_after - shares[1], shares[0] - low_before, phi)
    return {
        **{name: _told(share, *ends) for name, share, ends in zip(RUNS, shares, intervals, strict=True)},
        "difference": _told(change, change - down, change + up),
    }


def correlation(before: Flags, after: Flags) -> float:
    """Return the correlation of two flags of the same images, corrected for continuity as method 10 does."""
    both, neither = int((before & after).sum()), int((~before & ~after).sum())
    lost, gained = int((before & ~after).sum()), int((~before & after).sum())
    excess = float(both * neither - lost * gained)
    excess = max(excess - len(before) / 2, 0.0) if excess > 0 else excess
    margins = (both + lost) * (gained + neither) * (both + gained) * (lost + neither)
    return excess / math.sqrt(margins) if margins else 0.0


def _joined(one: float, other: float, phi: float) -> float:
    return math.sqrt(max(0.0, one * one - 2 * phi * one * other + other * other))


def _told(estimate: float, low: float, high: float) -> dict[str, float]:
    return {"estimate": estimate, "low": low, "high": high}
