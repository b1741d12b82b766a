"""Estimation of the share of unknown images in an archive from split-conformal p-values alone.

With a share pi of unknown images, the share of the archive with p <= t is

    R(t) = (1 - pi) K(t) + pi G(t)

where K and G are those shares among known and among unknown images. K(t) = t up to the luck of the calibration: with n
calibration images, K at t = j / (n + 1) follows Beta(j, n + 1 - j). The archive and the calibration are both finite
samples, and the band around R(t) - t covers both. It is simulated: archives are drawn from a multinomial, calibrations
from a Dirichlet distribution (the spacings of n uniform order statistics). With a calibration per class, K is the mean
of the classes' own K, weighted by the share w of each predicted class in the archive; its expectation lies a little
below t, as a class allows few p-values, and is used in place of t. It varies as in a pooled calibration of so many
images that 1 / (n + 2) is the sum of w^2 / (n_k + 2).

Low end: G <= 1, so pi >= (R - K) / (1 - K) at every t. The best t counts, and the band holds for all t at once. The
only assumption is that the archive's known images are like those of the calibration.

Estimate and high end: unknown images that score like known ones cannot be counted, so something must be assumed about
G. The tail estimate (Storey 2002), (R - t) / (1 - t) at t = lambda, assumes G(lambda) = 1. A small lambda makes it
biased, a large one noisy. Lambda is fixed at .4, which states a condition that can be checked: unknown images score
above three known images out of five. A lambda chosen from the data would rely on a bias being small merely because
noise hides it. The data may show that the condition holds only nearly: the density of images between p-values of .1 and
.4 is still higher than beyond. Then the high end is raised by a quarter of that fall, less its standard error. This
covers all unknown images beyond lambda if they are a fifth as dense there as just before it.

Measured with the default detector on four six-class CIFAR-10 networks, 2,250 calibration images, an archive of 4,000
known images and 1,000 of the four other classes, all drawn anew 40 times: on each network the interval covers the truth
39 or 40 times and is .12 to .14 wide. With images made by code instead (digits, noise, textures) it covers the truth 38
or 39 times and is .05 to .08 wide. If unknown images hide among the known ones (digits and noise scored by the max
logit of one of the networks, the four classes scored by the distance to the nearest features), only the lower bound
holds.

T thresholds of the grid, C = T + 1 cells between them, B simulations.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradosr.audit.p_values import PValues

Floats = NDArray[np.float64]

GRID = (*(1e-5, 1e-4, 1e-3, 0.01, 0.03), *(0.06, 0.1, 0.2, 0.3, 0.4))
"""The p-values at which archive and calibration are compared; the last one is lambda."""
BEFORE = GRID.index(0.1) - len(GRID)
"""Index, from the end of the grid, of the threshold at which the stretch before lambda begins."""
RAISE = 0.25
"""Share of the fall in density by which the high end is raised.

Beyond lambda, unknown images are then assumed to be at most RAISE / (1 + RAISE) as dense as just before it.
"""
FEWEST = 10
"""Minimum number of calibration images below the smallest threshold of the grid."""
FEWEST_IN_ALL = 100
"""Minimum number of calibration images; with fewer, the grid would not reach from BEFORE to lambda."""
SIMULATIONS = 4000
METHOD = (
    "tail of the conformal p-values (Storey) at lambda = 0.4; low end and lower bound from a band over all thresholds "
    "at once; all three hold the sampling error of both archive and calibration"
)


@dataclass(frozen=True)
class Prevalence:
    """The share of unknown images among those with a score, from 0 to 1; without figures, `reason` says why."""

    estimate: float | None
    low: float | None
    high: float | None
    """High end of the two-sided interval at `confidence`; `low` is its low end."""
    lower_bound: float | None
    """One-sided lower bound at `confidence`; it assumes nothing about the unknown images."""
    confidence: float
    method: str
    tuning: str
    reason: str | None = None


def no_prevalence(reason: str, confidence: float) -> Prevalence:
    """Return a prevalence without figures, with the reason."""
    return Prevalence(None, None, None, None, confidence, METHOD, "", reason)


def share_of_unknown(found: PValues, confidence: float) -> Prevalence:
    """Estimate the share of unknown images in an archive from the p-values of its images."""
    if not found.images:
        return no_prevalence("no image has a score", confidence)
    archive = _Excess.of(found) if found.effective >= FEWEST_IN_ALL else None
    if archive is None:
        return no_prevalence(_too_few(found), confidence)
    half = (1 - confidence) / 2
    known = 1 - archive.lowest(archive.deviations(1.0), 1 - half)
    deviation_BT = archive.deviations(known)  # fewer known images have a smaller error
    low = archive.lowest(deviation_BT, 1 - half)
    tail = 1 - archive.grid_T[-1]
    estimate = archive.excess_t[-1] / tail
    high = estimate - np.quantile(deviation_BT[:, -1], half) / tail + archive.hidden(deviation_BT)
    low, high = min(low, 1.0), min(max(high, low, 0.0), 1.0)
    return Prevalence(
        estimate=float(min(max(estimate, low), high)),
        low=float(low),
        high=float(high),
        lower_bound=float(archive.lowest(deviation_BT, confidence)),
        confidence=confidence,
        method=METHOD,
        tuning=(
            f"lambda {archive.grid_T[-1]:.3g}: estimate and high end hold where unknown images score above three "
            f"known images of five, or nearly so; band over {len(archive.grid_T)} thresholds from "
            f"{archive.grid_T[0]:.3g}, from {SIMULATIONS} simulated archives of {found.images} and calibrations of "
            f"{found.effective:.0f} images"
        ),
    )


def _too_few(found: PValues) -> str:
    if found.per_class:
        return (
            "the predicted classes of this archive have too few calibration images each for a share: they are worth "
            f"{found.effective:.0f} of a pooled calibration; hold out more, or fit with `calibration: pooled`"
        )
    return f"{found.calibration_images} calibration images are too few for a share; fit with at least {FEWEST_IN_ALL}"


@dataclass(frozen=True)
class _Excess:
    """The excess of an archive's p-values up to each threshold over what known images alone would have."""

    images: int
    n_plus_1: float
    grid_T: Floats
    """Expected shares of known images up to each threshold."""
    shares_C: Floats
    """Share of the archive's images in each cell."""

    @classmethod
    def of(cls, found: PValues) -> "_Excess | None":
        """Compute the excess at the possible p-values next below those of GRID; None if there are too few of them.

        Thresholds with fewer than FEWEST calibration images below them are left out.
        """
        n_plus_1 = found.effective + 1
        ends = np.unique([found.up_to(t) for t in GRID if t * n_plus_1 >= FEWEST - 1e-9])
        known = np.append(0, found.known_V)[ends]
        ends = ends[np.diff(known, prepend=0) > 0]
        if len(ends) < -BEFORE:
            return None
        cells_C = np.add.reduceat(found.images_V, [0, *ends])
        return cls(found.images, n_plus_1, found.known_V[ends - 1], cells_C / found.images)

    @property
    def excess_t(self) -> Floats:
        """The excess R(t) - K(t) at each threshold [T]."""
        return np.asarray(np.cumsum(self.shares_C)[:-1] - self.grid_T)

    def deviations(self, known: float) -> Floats:
        """Simulate sampling errors of the excess [B, T], given the share `known` of known images."""
        rng = np.random.default_rng(0)  # the same table gives the same figures
        widths_C = np.diff([0, *self.grid_T, 1])
        # A cell that happens to be empty may not be in another sample, so each gets half an image more.
        shares_C = (self.shares_C * self.images + 0.5) / (self.images + 0.5 * len(self.shares_C))
        archive_BC = rng.multinomial(self.images, shares_C, SIMULATIONS) / self.images - shares_C
        known_BC = rng.dirichlet(widths_C * self.n_plus_1, SIMULATIONS) - widths_C
        return np.asarray(np.cumsum(archive_BC + known * known_BC, 1)[:, :-1])

    def lowest(self, deviation_BT: Floats, confidence: float) -> float:
        """Return the smallest share of unknown images that agrees with the excess at all thresholds; one-sided."""
        scale_T = deviation_BT.std(0)
        width_T = np.quantile((deviation_BT / scale_T).max(1), confidence) * scale_T
        return max(0.0, float(((self.excess_t - width_T) / (1 - self.grid_T)).max()))

    def hidden(self, deviation_BT: Floats) -> float:
        """Return the share of unknown images that may lie beyond lambda without being visible there."""
        fall = self._fall(self.excess_t) - self._fall(deviation_BT).std()
        return float(RAISE * max(0.0, fall))

    def _fall(self, excess_t: Floats) -> Floats:
        """Return the density between BEFORE and lambda less that beyond lambda, for excesses [..., T]."""
        before, last = self.grid_T[BEFORE], self.grid_T[-1]
        between = (excess_t[..., -1] - excess_t[..., BEFORE]) / (last - before)
        return np.asarray(between + excess_t[..., -1] / (1 - last))
