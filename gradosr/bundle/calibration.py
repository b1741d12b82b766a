"""Split-conformal p-values, which give unknown scores a meaning; measured on known images used for nothing else.

Pooled, they hold for known images on average: of a class that is hard for the classifier more are called unknown, of an
easy one fewer. Per class, an image is compared with those calibration images alone that the classifier takes for the
same class (Mondrian conformal prediction: Vovk, Lindsay, Nouretdinov & Gammerman, Mondrian confidence machine, 2003).
Its category is the predicted class, which is known of every image, and so the p-values of known images that are taken
for a class are valid for each class by itself.

K classes, n calibration images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gradosr.config import CalibrationKind
from gradosr.errors import InputError

HISTOGRAM_BINS = 64
RARE = 0.01
"""Largest share of the calibration images that all classes without a calibration of their own may have together.

Known images are then almost never taken for one of them. Those that are have the p-values of a pooled calibration, so
the rate of false alarms rises by less than this share, whatever happens to them.
"""
SHOWN = 10
"""Most classes that a message names."""
_ALL = -1

Scores = NDArray[np.floating]
Indices = NDArray[np.integer]


@dataclass(frozen=True)
class Calibration:
    """The unknown scores of n held-out known images, ascending. Higher = more unknown."""

    scores: NDArray[np.float32]
    predicted: NDArray[np.int32] | None = None
    """Index of each image's predicted class, -1 if that has no calibration of its own; None if all are pooled."""

    @classmethod
    def of(
        cls, scores: Scores, rate: float, predicted: Indices | None = None, classes: Sequence[str] = ()
    ) -> "Calibration":
        """Create a calibration from the finite scores: per class if `predicted` is given, or else pooled.

        Raises InputError if they are too few to certify `rate`.
        """
        rows = np.flatnonzero(np.isfinite(scores))
        found = scores[rows].astype(np.float32)
        order = np.argsort(found, kind="stable")
        check_enough(len(found), rate)
        if predicted is None:
            return cls(found[order])
        taken_for = predicted[rows][order]
        own_K = with_own(np.bincount(taken_for, minlength=len(classes)), rate, classes, "by predicted class")
        return cls(found[order], np.where(own_K[taken_for], taken_for, _ALL).astype(np.int32))

    @property
    def kind(self) -> CalibrationKind:
        """The kind of calibration, as in the config of a fit job."""
        return "pooled" if self.predicted is None else "per_class"

    @cached_property
    def by_class(self) -> Mapping[int, NDArray[np.float32]]:
        """The scores of each class that has a calibration of its own, ascending, by its index."""
        if self.predicted is None:
            return {}
        return {k: self.scores[self.predicted == k] for k in np.unique(self.predicted).tolist() if k != _ALL}

    def p_values(self, scores: Scores, predicted: Indices | None = None) -> NDArray[np.float32]:
        """Return (1 + calibration images that score at least as high) / (n + 1); nan for scores that are nan.

        `predicted` are the indices of the predicted classes; a pooled calibration needs none.
        """
        if self.predicted is None:
            return _p_values(self.scores, scores)
        if predicted is None:
            raise TypeError("a calibration per class needs the predicted classes")
        found = np.empty(len(scores), np.float32)
        for k in np.unique(predicted).tolist():
            rows = predicted == k
            found[rows] = _p_values(self.by_class.get(k, self.scores), scores[rows])
        return found

    def histogram(self) -> tuple[NDArray[np.integer], Scores]:
        """Return counts of the scores, and the evenly spaced edges of their bins."""
        return np.histogram(self.scores.astype(np.float64), HISTOGRAM_BINS)

    def threshold(self, rate: float, predicted: int = _ALL) -> float:
        """Return the highest unknown score that is still called known; p <= rate holds exactly if score > threshold."""
        scores = self.by_class.get(predicted, self.scores)
        return float(scores[len(scores) - 1 - _allowed(len(scores), rate)])

    def thresholds(self, rate: float, classes: Sequence[str]) -> float | dict[str, float]:
        """Return the threshold, or that of each class by its name."""
        if self.predicted is None:
            return self.threshold(rate)
        return {name: self.threshold(rate, k) for k, name in enumerate(classes)}


def check_enough(n: int, rate: float) -> None:
    """Raise InputError if n calibration images are too few to certify a false-alarm rate of `rate`."""
    if _allowed(n, rate) < 0:
        raise InputError(
            f"{n} calibration images: the smallest p-value they allow is {1 / (n + 1):.3g}; "
            f"a false-alarm rate of {rate:g} needs at least {_needed(rate)}. Hold out more images"
        )


def with_own(images_K: Indices, rate: float, classes: Sequence[str], counted: str) -> NDArray[np.bool_]:
    """Return which classes have calibration images enough for a calibration of their own.

    The others are (almost) never predicted: together they have at most RARE of the images. Raises InputError if they
    have more; `counted` says how the images are counted.
    """
    own_K = images_K >= _needed(rate)
    few = {name: int(images) for name, images, own in zip(classes, images_K, own_K, strict=True) if not own and images}
    if sum(few.values()) > RARE * images_K.sum():
        told = ", ".join(f"{name} {images}" for name, images in list(few.items())[:SHOWN])
        more = f" and {len(few) - SHOWN} more" if len(few) > SHOWN else ""
        raise InputError(
            f"calibration per class: too few calibration images {counted}: {told}{more}; a false-alarm rate of "
            f"{rate:g} needs at least {_needed(rate)} of each. Hold out more images, or pool them "
            "(`calibration: pooled`)"
        )
    return own_K


def _p_values(known: NDArray[np.float32], scores: Scores) -> NDArray[np.float32]:
    at_least = len(known) - np.searchsorted(known, scores.astype(np.float32), side="left")
    return np.where(np.isnan(scores), np.float32(np.nan), _p_value(at_least, len(known)))


def _p_value(at_least: NDArray[np.integer], n: int) -> NDArray[np.float32]:
    return ((1 + at_least) / (n + 1)).astype(np.float32)


def _needed(rate: float) -> int:
    return int(np.ceil(1 / rate - 1e-9)) - 1


def _allowed(n: int, rate: float) -> int:
    """Return how many of n calibration images may score at least as high while p <= rate; -1 if not even none."""
    return int(np.searchsorted(_p_value(np.arange(n), n), np.float32(rate), side="right")) - 1
