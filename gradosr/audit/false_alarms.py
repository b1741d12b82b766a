"""The number of known images among those over the threshold, judged by their p-values."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradosr.audit.p_values import PValues

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class FalseAlarms:
    """A model of how likely an image with a given p-value is to be known, averaged over the archive.

    The p-values of known images are uniform, so any excess over a uniform distribution comes from unknown images. The
    same shares are used in every cluster. Known images near the threshold may in fact concentrate in some clusters more
    than in others, which p-values cannot show.
    """

    edges: NDArray[np.float64]
    """Ascending p-values, starting at 0."""
    shares: NDArray[np.float64]
    """Share of known images between two neighbouring edges, from 0 to 1; it never decreases."""

    @classmethod
    def of(cls, p_values: PValues, known: float, threshold: float) -> "FalseAlarms":
        """Fit the model to the p-values up to the threshold; `known` is the share of known images."""
        last = max(1, p_values.up_to(threshold))
        ends = np.unique(np.concatenate([[0], np.geomspace(1, last, 12).astype(int), [last]]))
        found = np.add.reduceat(p_values.images_V[:last], ends[:-1])
        expected = known * p_values.images * np.diff(np.append(0, p_values.known_V)[ends])
        return cls(np.append(0, p_values.values_V)[ends], _never_falling(expected, found))

    def __call__(self, p_values: Sequence[float]) -> Floats:
        """Return the probability that each image is known."""
        cells = np.searchsorted(self.edges, np.asarray(p_values) - 1e-9) - 1
        return np.asarray(self.shares[np.clip(cells, 0, len(self.shares) - 1)])


def _never_falling(expected: Floats, found: NDArray[np.integer]) -> Floats:
    """Return expected / found as shares of at most 1 that never fall, by isotonic regression weighted by `found`."""
    from sklearn.isotonic import isotonic_regression  # takes a second, which audits with clusters alone need

    weights = np.maximum(found, 1e-9)
    shares: Floats = isotonic_regression(expected / weights, sample_weight=weights, y_max=1.0)
    return shares
