"""Which images are called unknown so that a known share of the calls, at most, is false.

Benjamini & Hochberg (1995) on split-conformal p-values, which keeps the false discovery rate for known images like
those of the calibration (Bates et al., 2023, theorem 2), on average over calibrations: one may be lucky or not.
It works on the counts of the p-values j / (n + 1): exact, without sorting a row.

The smallest p-value is 1 / (n + 1), so k flagged images among m need 1 / (n + 1) <= level * k / m: rare unknown images
in a huge archive need a large calibration, whatever the detector.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MOST_CALIBRATION_IMAGES = 10**9
"""Where more would be needed, none is named."""
FEWEST = 10
"""Calibration images below a p-value that an extrapolation starts at."""


@dataclass(frozen=True)
class Flags:
    """What can be flagged at a level of false discoveries."""

    level: float
    """Share of the flagged images that are known, at most and on average."""
    count: int | None
    expected_false: float | None
    """level * count."""
    smallest_p_value: float | None
    calibration_images: int | None
    needed_calibration_images: int | None
    """For this archive's size and the share found; an extrapolation where nothing is certified yet."""
    reason: str | None
    """Why nothing is flagged."""
    rank: int = 0
    """Flagged are p-values of up to rank / (n + 1)."""

    @property
    def cut(self) -> float:
        """A p-value between the largest that is flagged and the next one."""
        return (self.rank + 0.5) / ((self.calibration_images or 0) + 1)


def no_flags(reason: str, level: float) -> Flags:
    """None, for want of a calibration."""
    return Flags(level, None, None, None, None, None, reason)


def certified(counts_N: NDArray[np.integer], level: float, known: float = 1.0) -> Flags:
    """Of an archive where `counts_N[j]` images have the p-value (j + 1) / N; N - 1 calibration images.

    `known`: estimated share of known images, for what more calibration images would bring.
    """
    images, n_plus_1 = int(counts_N.sum()), len(counts_N)
    found_N = np.cumsum(counts_N)
    passing = np.flatnonzero(found_N * level * n_plus_1 >= np.arange(1, n_plus_1 + 1) * images)
    rank = int(passing[-1]) + 1 if images and len(passing) else 0
    count = int(found_N[rank - 1]) if rank else 0
    if count:
        enough = max(1, math.ceil(images / (level * count) - 1e-9) - 1)
        return Flags(level, count, level * count, 1 / n_plus_1, n_plus_1 - 1, enough, None, rank)
    needed = _needed(found_N, level, known) if images else None
    reason = _why_none(images, n_plus_1, level, int(counts_N[0]), needed)
    return Flags(level, 0, 0.0, 1 / n_plus_1, n_plus_1 - 1, needed, reason)


def _needed(found_N: NDArray[np.integer], level: float, known: float) -> int | None:
    """Calibration images that would certify some; None where no number would, as far as it can be told.

    The share of unknown images below p is taken to go on as a power of p as it does between two p-values of this
    calibration; it is certified at the p where shares are 1 / level times what known images alone would have.
    """
    images, n_plus_1 = int(found_N[-1]), len(found_N)
    smallest = images / (level * max(1, int(found_N[0])))
    low, high = FEWEST, max(FEWEST * 5, n_plus_1 // 20)
    if high >= n_plus_1:
        return _bounded(smallest)
    excess_low, excess_high = (found_N[rank - 1] / images - known * rank / n_plus_1 for rank in (low, high))
    if excess_low <= 0 or excess_high <= excess_low:
        return _bounded(smallest)
    power = math.log(excess_high / excess_low) / math.log(high / low)
    if power >= 1:  # the rarer the p-value, the fewer unknown images are among those that have it
        return None
    start = low / n_plus_1
    log_p = math.log(start) + math.log((1 / level - known) * start / excess_low) / (power - 1)
    return _bounded(max(smallest, math.exp(min(-log_p, 700))))


def _bounded(needed: float) -> int | None:
    return math.ceil(needed) if needed < MOST_CALIBRATION_IMAGES else None


def _why_none(images: int, n_plus_1: int, level: float, smallest: int, needed: int | None) -> str:
    if not images:
        return "no image has a score"
    enough = math.ceil(images / (level * n_plus_1) - 1e-9)
    told = (
        f"none can be certified at {level:.0%}: {smallest} of {images} images have the smallest p-value, 1/{n_plus_1}; "
        f"{enough} would be enough"
    )
    if needed is None:
        return (
            f"{told}; the unknown images here are too much like the known for any number of calibration images to help"
        )
    return f"{told}, or about {needed:,} calibration images instead of {n_plus_1 - 1:,}"
