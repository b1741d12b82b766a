"""Flagging of images as unknown so that, on average, at most a given share of the flags is false.

The procedure of Benjamini & Hochberg (1995) is applied to split-conformal p-values. It controls the false discovery
rate if the archive's known images are like those of the calibration (Bates et al., 2023, theorem 2). That holds on
average over calibrations; a single calibration may do better or worse. It is computed from counts by p-value
j / (n + 1), which is exact and needs no sorting of rows.

The smallest p-value is 1 / (n + 1), so k flagged images among m need 1 / (n + 1) <= level * k / m: rare unknown images
in a huge archive need a large calibration, whatever the detector.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Flags:
    """The images that can be flagged at a given false discovery rate."""

    level: float
    """The false discovery rate: the largest share, on average, of flagged images that are in fact known."""
    count: int | None
    expected_false: float | None
    """Expected number of known images among the flagged: level * count."""
    smallest_p_value: float | None
    calibration_images: int | None
    reason: str | None
    """The reason that nothing is flagged; None if something is."""
    rank: int = 0
    """Images with a p-value of at most rank / (n + 1) are flagged."""

    @property
    def cut(self) -> float:
        """A p-value between the largest that is flagged and the next possible one."""
        return (self.rank + 0.5) / ((self.calibration_images or 0) + 1)


def no_flags(reason: str, level: float) -> Flags:
    """Return no flags, with the reason that there are no usable p-values."""
    return Flags(level, None, None, None, None, reason)


def certified(counts_N: NDArray[np.integer], level: float) -> Flags:
    """Flag images of an archive in which `counts_N[j]` images have the p-value (j + 1) / N.

    N is the number of calibration images plus one.
    """
    images, n_plus_1 = int(counts_N.sum()), len(counts_N)
    found_N = np.cumsum(counts_N)
    passing = np.flatnonzero(found_N * level * n_plus_1 >= np.arange(1, n_plus_1 + 1) * images)
    rank = int(passing[-1]) + 1 if images and len(passing) else 0
    count = int(found_N[rank - 1]) if rank else 0
    if count:
        return Flags(level, count, level * count, 1 / n_plus_1, n_plus_1 - 1, None, rank)
    reason = _why_none(images, n_plus_1, level, int(counts_N[0]))
    return Flags(level, 0, 0.0, 1 / n_plus_1, n_plus_1 - 1, reason)


def _why_none(images: int, n_plus_1: int, level: float, smallest: int) -> str:
    if not images:
        return "no image has a score"
    enough = math.ceil(images / (level * n_plus_1) - 1e-9)
    return (
        f"at no score are there {1 / level:.3g} times as many images as known ones alone would give: {smallest:,} "
        f"score above all {n_plus_1 - 1:,} calibration images, and {enough:,} would have to"
    )
