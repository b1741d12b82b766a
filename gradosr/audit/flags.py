"""Flagging of images as unknown so that, on average, at most a given share of the flags is false.

The procedure of Benjamini & Hochberg (1995) is applied to split-conformal p-values. It controls the false discovery
rate if the archive's known images are like those of the calibration (Bates et al., 2023, theorem 2), pooled or per
class (p_values.py). That holds on average over calibrations; a single calibration may do better or worse. It is
computed from counts by p-value, which is exact and needs no sorting of rows.

The smallest p-value is 1 / (n + 1), so k flagged images among m need 1 / (n + 1) <= level * k / m: rare unknown images
in a huge archive need a large calibration, whatever the detector.
"""

import math
from dataclasses import dataclass

import numpy as np

from gradosr.audit.p_values import PValues


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
    cut: float = 0.0
    """A p-value between the largest that is flagged and the next possible one; 0 if nothing is flagged."""


def no_flags(reason: str, level: float) -> Flags:
    """Return no flags, with the reason that there are no usable p-values."""
    return Flags(level, None, None, None, None, reason)


def certified(found: PValues, level: float) -> Flags:
    """Flag images of an archive by their p-values."""
    images, smallest = found.images, float(found.values_V[0])
    flagged_V = np.cumsum(found.images_V)
    passing = np.flatnonzero(flagged_V * level >= found.values_V * images * (1 - 1e-12))
    last = int(passing[-1]) if images and len(passing) else 0
    count = int(flagged_V[last]) if images and len(passing) else 0
    if count:
        below, above = np.append(found.values_V, 2.0)[last : last + 2]
        cut = float(below + (above - below) / 4)  # in float32 it is not the next one, however near that is
        return Flags(level, count, level * count, smallest, found.calibration_images, None, cut)
    return Flags(level, 0, 0.0, smallest, found.calibration_images, _why_none(found, level))


def _why_none(found: PValues, level: float) -> str:
    if not found.images:
        return "no image has a score"
    enough = math.ceil(found.images * found.lowest / level - 1e-9)
    whose = "calibration images of their predicted class" if found.per_class else "calibration images"
    number = "" if found.per_class else f"{found.calibration_images:,} "
    return (
        f"at no score are there {1 / level:.3g} times as many images as known ones alone would give: {found.highest:,} "
        f"score above all {number}{whose}, and {enough:,} would have to"
    )
