"""Histograms of the unknown scores of an archive and of the calibration, on the same evenly spaced edges."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradosr.audit.p_values import PValues
from gradosr.audit.tally import ScoreCells
from gradosr.bundle.manifest import CalibrationSummary

MOST_BINS = 120
OUTSIDE = 0.001
"""Share of images at either end that may fall into one wide bin, so that a few scores do not flatten the rest."""


def score_histogram(cells: ScoreCells, calibration: CalibrationSummary | None) -> dict[str, Any]:
    """Return edges [n + 1], archive counts [n], and calibration counts [n] or None.

    The two outermost bins extend as far as there are images.
    """
    scores, counts = cells.counted()
    if not len(scores):
        return {"edges": [], "archive": [], "calibration": None}
    edges = _edges(scores, counts, calibration)
    archive = np.histogram(np.clip(scores, edges[0], edges[-1]), edges, weights=counts)[0]
    known = None if calibration is None else _rebinned(calibration, edges)
    edges[0], edges[-1] = min(edges[0], scores[0]), max(edges[-1], scores[-1])
    return {
        "edges": edges.tolist(),
        "archive": archive.astype(int).tolist(),
        "calibration": None if known is None else known.tolist(),
    }


def _edges(
    scores: NDArray[np.float64], counts: NDArray[np.int64], calibration: CalibrationSummary | None
) -> NDArray[np.float64]:
    """Extend the calibration's edges over the archive's scores, with wider bins if there would be too many."""
    below = np.cumsum(counts) / counts.sum()
    low, high = (float(scores[np.searchsorted(below, share)]) for share in (OUTSIDE, 1 - OUTSIDE))
    if calibration is None:
        return np.linspace(low, max(high, np.nextafter(low, np.inf) + 1e-6 * abs(low) + 1e-9), MOST_BINS // 2 + 1)
    start, width = calibration.edges[0], calibration.edges[1] - calibration.edges[0]
    high, low = max(high, calibration.edges[-1]), min(low, start)
    width *= max(1, int(np.ceil((high - low) / width / MOST_BINS)))
    first, last = int(np.floor((low - start) / width)), int(np.ceil((high - start) / width))
    return np.asarray(start + width * np.arange(first, last + 1), np.float64)


def _rebinned(calibration: CalibrationSummary, edges: NDArray[np.float64]) -> NDArray[np.int64]:
    middles = (np.array(calibration.edges[:-1]) + np.array(calibration.edges[1:])) / 2
    counts = np.histogram(np.clip(middles, edges[0], edges[-1]), edges, weights=calibration.counts)[0]
    return np.asarray(counts.astype(np.int64))


def p_value_histogram(found: PValues | None, twentieths: NDArray[np.integer]) -> dict[str, Any]:
    """Return edges [n + 1] and archive counts [n] of the p-values.

    Bins are as fine as the possible p-values allow, and as wide as the share of known images that is expected in them.
    Without p-values of the recorded calibration, the counts in `twentieths` are used.
    """
    if found is None:
        return {"edges": np.linspace(0, 1, 21).tolist(), "archive": twentieths.tolist()}
    possible = len(found.values_V)
    ends = np.unique(np.linspace(0, possible, min(possible, 100) + 1).astype(int))
    archive = np.add.reduceat(found.images_V, ends[:-1])
    return {"edges": np.append(0, found.known_V)[ends].tolist(), "archive": archive.tolist()}
