"""Split-conformal p-values: what an unknown score means, measured on known images used for nothing else."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradosr.errors import InputError

Scores = NDArray[np.floating]


@dataclass(frozen=True)
class Calibration:
    """Unknown scores of n held-out known images, ascending. Higher = more unknown."""

    scores: NDArray[np.float32]

    @classmethod
    def of(cls, scores: Scores, rate: float) -> "Calibration":
        """Raises InputError when there are too few images to certify a false-alarm rate of `rate`."""
        finite = np.sort(scores[np.isfinite(scores)]).astype(np.float32)
        needed = int(np.ceil(1 / rate)) - 1
        if len(finite) < needed:
            raise InputError(
                f"{len(finite)} calibration images: the smallest p-value they allow is {1 / (len(finite) + 1):.3g}; "
                f"a false-alarm rate of {rate:g} needs at least {needed}. Hold out more images"
            )
        return cls(finite)

    def p_values(self, scores: Scores) -> NDArray[np.float32]:
        """(1 + calibration images scoring at least as high) / (n + 1); nan where the score is."""
        at_least = len(self.scores) - np.searchsorted(self.scores, scores.astype(np.float32), side="left")
        p = ((1 + at_least) / (len(self.scores) + 1)).astype(np.float32)
        return np.where(np.isnan(scores), np.float32(np.nan), p)

    def threshold(self, rate: float) -> float:
        """The highest unknown score that is still called known; p <= rate exactly where score > threshold."""
        allowed = int(np.floor(rate * (len(self.scores) + 1) + 1e-9)) - 1
        return float(self.scores[len(self.scores) - 1 - allowed])
