"""Split-conformal p-values, which give unknown scores a meaning; measured on known images used for nothing else."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradosr.errors import InputError

HISTOGRAM_BINS = 64

Scores = NDArray[np.floating]


@dataclass(frozen=True)
class Calibration:
    """The unknown scores of n held-out known images, ascending. Higher = more unknown."""

    scores: NDArray[np.float32]

    @classmethod
    def of(cls, scores: Scores, rate: float) -> "Calibration":
        """Create a calibration from the finite scores. Raises InputError if they are too few to certify `rate`."""
        finite = np.sort(scores[np.isfinite(scores)]).astype(np.float32)
        check_enough(len(finite), rate)
        return cls(finite)

    def p_values(self, scores: Scores) -> NDArray[np.float32]:
        """Return (1 + calibration images that score at least as high) / (n + 1); nan for scores that are nan."""
        at_least = len(self.scores) - np.searchsorted(self.scores, scores.astype(np.float32), side="left")
        return np.where(np.isnan(scores), np.float32(np.nan), _p_value(at_least, len(self.scores)))

    def histogram(self) -> tuple[NDArray[np.integer], Scores]:
        """Return counts of the scores, and the evenly spaced edges of their bins."""
        return np.histogram(self.scores.astype(np.float64), HISTOGRAM_BINS)

    def threshold(self, rate: float) -> float:
        """Return the highest unknown score that is still called known; p <= rate holds exactly if score > threshold."""
        return float(self.scores[len(self.scores) - 1 - _allowed(len(self.scores), rate)])


def check_enough(n: int, rate: float) -> None:
    """Raise InputError if n calibration images are too few to certify a false-alarm rate of `rate`."""
    if _allowed(n, rate) < 0:
        needed = int(np.ceil(1 / rate - 1e-9)) - 1
        raise InputError(
            f"{n} calibration images: the smallest p-value they allow is {1 / (n + 1):.3g}; "
            f"a false-alarm rate of {rate:g} needs at least {needed}. Hold out more images"
        )


def _p_value(at_least: NDArray[np.integer], n: int) -> NDArray[np.float32]:
    return ((1 + at_least) / (n + 1)).astype(np.float32)


def _allowed(n: int, rate: float) -> int:
    """Return how many of n calibration images may score at least as high while p <= rate; -1 if not even none."""
    return int(np.searchsorted(_p_value(np.arange(n), n), np.float32(rate), side="right")) - 1
