"""Proportions, their confidence intervals, and tests of whether two of them differ."""

import math
from collections.abc import Sequence

from scipy.stats import norm

CONFIDENCE = 0.95
Z = float(norm.ppf(0.5 + CONFIDENCE / 2))


def wilson(found: float, total: float) -> tuple[float, float]:
    """Return the 95 % interval of a proportion (Wilson 1927); 0 to 1 if `total` is 0."""
    if not total:
        return 0.0, 1.0
    share, weight = found / total, Z * Z / total
    middle = (share + weight / 2) / (1 + weight)
    half = Z * math.sqrt(share * (1 - share) / total + weight / total / 4) / (1 + weight)
    return max(0.0, middle - half), min(1.0, middle + half)


def difference(found: int, total: int, before: int, total_before: int) -> tuple[float, float, float]:
    """Return the proportion now minus the one before, and its 95 % interval (Newcombe 1998, method 10)."""
    low, high = wilson(found, total)
    low_before, high_before = wilson(before, total_before)
    share, share_before = found / max(1, total), before / max(1, total_before)
    change = share - share_before
    return (
        change,
        change - math.hypot(share - low, high_before - share_before),
        change + math.hypot(high - share, share_before - low_before),
    )


def p_of_difference(found: int, total: int, before: int, total_before: int) -> float:
    """Return the two-sided p-value for two equal proportions (pooled z test); 1 if there is nothing to compare."""
    pooled = (found + before) / max(1, total + total_before)
    variance = pooled * (1 - pooled) * (1 / max(1, total) + 1 / max(1, total_before))
    if not (total and total_before and variance):
        return 1.0
    return float(2 * norm.sf(abs(found / total - before / total_before) / math.sqrt(variance)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted by Holm's method, which controls the family-wise error rate.

    The probability that any of those below a bound is there by chance is at most the bound.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for done, index in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        largest = max(largest, min(1.0, (len(p_values) - done) * p_values[index]))
        adjusted[index] = largest
    return adjusted
