"""Proportions, their confidence intervals, and tests of whether two of them differ."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from scipy.stats import norm, t

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


@dataclass(frozen=True)
class Stratum:
    """Images of which some were drawn at random, all with the same probability, and looked at."""

    images: float
    """Number of all its images, at least `drawn`."""
    drawn: float
    found: float
    """Number of the drawn that have what is counted."""


def stratified(strata: Sequence[Stratum]) -> tuple[float, float, float]:
    """Return a proportion among all images of the strata, and its 95 % interval.

    The estimator is the stratified one, which weighs each image by the inverse of its probability (Horvitz & Thompson
    1952; Hajek's ratio of two such sums). Its variance is the sum of W^2 (1 - n / N) s^2 / n with W the share of a
    stratum's images (Cochran 1977, Sampling Techniques, section 5.4), where s^2 is that of (found + 1/2) / (n + 1), as
    a few images that are all alike do not show a stratum without variance. The interval is Wilson's for the number of
    images that would have this variance if they were drawn from everything, less where few draws tell the variance
    (both Korn & Graubard 1998): it holds for small counts, where estimate +- 2 deviations does not.
    """
    images = sum(one.images for one in strata)
    estimate = smoothed = variance = freedom = 0.0
    for one in strata:
        weight, share = one.images / images, (one.found + 0.5) / (one.drawn + 1)
        estimate += weight * one.found / one.drawn
        smoothed += weight * share
        variance += weight**2 * (1 - one.drawn / one.images) * share * (1 - share) / one.drawn
        freedom += one.drawn - 1 if one.drawn < one.images else 0
    if not variance:  # everything was looked at
        return estimate, estimate, estimate
    wider = float(t.ppf(0.5 + CONFIDENCE / 2, max(1.0, freedom))) / Z
    effective = smoothed * (1 - smoothed) / variance / wider**2
    return estimate, *wilson(estimate * effective, effective)


def more_to_halve(strata: Sequence[Stratum]) -> int:
    """Return how many more images, drawn from the strata as before, would halve the interval of `stratified`."""

    def more(factor: float) -> list[Stratum]:
        grown = [min(one.images, factor * one.drawn) for one in strata]
        return [
            replace(one, drawn=drawn, found=one.found / one.drawn * drawn)
            for one, drawn in zip(strata, grown, strict=True)
        ]

    def width(factor: float) -> float:
        _, low, high = stratified(more(factor))
        return high - low

    wanted, fewest, most = width(1.0) / 2, 1.0, max(one.images / one.drawn for one in strata)
    while most - fewest > 1e-3 * fewest:
        middle = math.sqrt(fewest * most)
        fewest, most = (middle, most) if width(middle) > wanted else (fewest, middle)
    return math.ceil(sum(one.drawn for one in more(most)) - sum(one.drawn for one in strata) - 1e-9)
