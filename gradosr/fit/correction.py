"""The correction that a learned detector makes, fitted to known images and to images that somebody has labelled.

A logistic regression of unknown against known images on the older score z and the signals x of
gradosr.detectors.learned. Only the weights of x are penalised: the stronger the penalty, the closer the new score stays
to the older one, which an infinite penalty leaves as it is. An unknown image has weight 1, and all known ones together
weigh as much as all unknown ones. B images, L of them labelled, D values of x.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

Floats = NDArray[np.float64]

PENALTIES = (4.0, 10.0, 25.0, 80.0, np.inf)
"""Penalties to choose from, per unknown image. A weaker one finds more near unknown images and loses far ones, which
labels cannot show: with the first, 800 labels cost strokes, clouds and shapes (lab/evaluation/far.py) .004 of AUROC at
most."""
FOLDS = 5
LEAST_SLOPE = 0.5
"""Least slope of the older score. Labels that contradict it altogether would otherwise correct images without bound."""


@dataclass(frozen=True)
class Examples:
    """Known images held out and labelled images, as the correction sees them."""

    z_B: Floats
    x_BD: Floats
    unknown_B: NDArray[np.bool_]
    labelled_B: NDArray[np.bool_]

    def __getitem__(self, rows: NDArray[np.bool_]) -> "Examples":
        return Examples(self.z_B[rows], self.x_BD[rows], self.unknown_B[rows], self.labelled_B[rows])


@dataclass(frozen=True)
class Correction:
    """A fitted regression: unknown with the odds exp(offset + slope * (z + w . x))."""

    offset: float
    slope: float
    weights_D: Floats

    def losses(self, examples: Examples) -> Floats:
        """Return the negative log-likelihood of each example, [B]."""
        logit_B = self.offset + self.slope * (examples.z_B + examples.x_BD @ self.weights_D)
        return np.logaddexp(0, np.where(examples.unknown_B, -logit_B, logit_B))


def fit_correction(examples: Examples, penalty: float) -> Correction:
    """Fit with a penalty per unknown image; `np.inf` leaves the older score uncorrected."""
    unknown_B, x_BD = examples.unknown_B, examples.x_BD
    if np.isinf(penalty):
        x_BD = x_BD[:, :0]
    unknown = unknown_B.sum()
    weight_B = np.where(unknown_B, 1.0, unknown / (len(unknown_B) - unknown))
    design_B2 = np.column_stack([np.ones(len(unknown_B)), examples.z_B])

    def loss(parameters: Floats) -> tuple[float, Floats]:
        first, weights_D = parameters[:2], parameters[2:]
        logit_B = design_B2 @ first + x_BD @ weights_D
        residual_B = weight_B * (expit(logit_B) - unknown_B)
        value = float(weight_B @ (np.logaddexp(0, logit_B) - unknown_B * logit_B))
        if not len(weights_D):
            return value, design_B2.T @ residual_B
        ridge = penalty * unknown
        gradient = np.append(design_B2.T @ residual_B, x_BD.T @ residual_B + ridge * weights_D)
        return value + ridge / 2 * weights_D @ weights_D, gradient

    start = np.zeros(2 + x_BD.shape[1])
    bounds = [(None, None), (LEAST_SLOPE, None), *[(None, None)] * x_BD.shape[1]]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 300}).x
    weights_D = np.zeros(examples.x_BD.shape[1])
    weights_D[: x_BD.shape[1]] = found[2:] / found[1]
    return Correction(found[0], found[1], weights_D)


def cross_validated(examples: Examples, seed: int = 0) -> dict[float, Floats]:
    """Return, by penalty, the loss of each labelled image under a fit without its fold, [L].

    Known images held out are in every fit.
    """
    fold_B = np.full(len(examples.z_B), -1)
    draws = np.random.default_rng(seed)
    for kind in (examples.labelled_B & examples.unknown_B, examples.labelled_B & ~examples.unknown_B):
        fold_B[kind] = draws.permutation(kind.sum()) % FOLDS
    losses = {penalty: np.zeros(len(fold_B)) for penalty in PENALTIES}
    for fold in range(FOLDS):
        left_out_B = fold_B == fold
        if not left_out_B.any():
            continue
        for penalty, loss_B in losses.items():
            loss_B[left_out_B] = fit_correction(examples[~left_out_B], penalty).losses(examples[left_out_B])
    return {penalty: loss_B[examples.labelled_B] for penalty, loss_B in losses.items()}


def choose_penalty(losses: Mapping[float, Floats]) -> float:
    """Return the strongest penalty that is not clearly worse than the best, from the losses of `cross_validated`.

    Clearly worse means by more than half a standard error of the mean difference from the best, image by image: few
    labels correct nothing unless they agree. (One standard error, as in Breiman et al., "Classification and Regression
    Trees", 1984, forgoes half of what 20 labels can give.)
    """
    best_L = losses[min(losses, key=lambda penalty: float(losses[penalty].mean()))]

    def clearly_worse(loss_L: Floats) -> bool:
        difference_L = loss_L - best_L
        return bool(difference_L.mean() > difference_L.std() / np.sqrt(len(difference_L)) / 2)

    return max(penalty for penalty, loss_L in losses.items() if not clearly_worse(loss_L))
