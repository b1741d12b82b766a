"""The row that a new class adds to a classifier's last layer; the rows of the old classes stay as they are.

With h an image's penultimate features and A = log sum_k exp(z_k) over its old logits z, the softmax cross-entropy over
old and new classes depends on the new logit s = w . h + b through log(1 + exp(s - A)) for an image of another class,
whichever that is, and through log(1 + exp(A - s)) for one of the new class. So w and b are a logistic regression with
the offset -A, here with a ridge on w for standardised features. An old class can lose only the images that s takes.

B images, K old classes, F features.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logsumexp

Floats = NDArray[np.float64]

PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0)
"""Ridges to choose from, per image of the new class."""
FOLDS = 5
STEPS, HALVINGS, TOLERANCE, TINY = 30, tuple(0.5**one for one in range(20)), 1e-6, 1e-9
"""Newton steps at most, the lengths that are tried of each, the decrease per image below which no further step is made,
and what is added to every curvature."""
MOST_TAKEN = 0.0025
"""Share of the known fitting images that the new class may take from their own: half of what may be lost on the
calibration images, as a share among a few hundred images is known to about that much."""
TAIL = 0.02
"""Share of the margins that tells how many lie below a bound."""


@dataclass(frozen=True)
class Pictures:
    """Images as the last layer sees them."""

    features_BF: Floats
    logits_BK: Floats
    new_B: NDArray[np.bool_]
    """Whether an image is of the new class."""
    known_B: NDArray[np.int64]
    """Index of the class of a known fitting image; -1 for an image that somebody labelled."""

    def __getitem__(self, rows: NDArray[np.bool_]) -> "Pictures":
        return Pictures(self.features_BF[rows], self.logits_BK[rows], self.new_B[rows], self.known_B[rows])


@dataclass(frozen=True)
class NewRow:
    """The new row of weights and its bias."""

    weight_F: Floats
    bias: float
    penalty: float
    found: float
    """Share of the labelled images of the new class that are given it by a row fitted without them."""

    def takes(self, pictures: Pictures) -> NDArray[np.bool_]:
        """Return which images are called the new class: those whose new logit is above the old ones, [B]."""
        return np.asarray(pictures.features_BF @ self.weight_F + self.bias > pictures.logits_BK.max(1))


def fit_new_row(pictures: Pictures) -> NewRow:
    """Fit the row with the ridge of the least cross-validated loss, and lower its bias until it takes few known images.

    How many are taken is told by rows that were fitted without them.
    """
    fold_B = np.random.default_rng(0).permutation(len(pictures.new_B)) % FOLDS
    fold_B[pictures.new_B] = np.arange(pictures.new_B.sum()) % FOLDS
    fresh = {penalty: _cross_validated(pictures, fold_B, penalty) for penalty in PENALTIES}
    offset_B, weight_B = logsumexp(pictures.logits_BK, axis=1), _weights(pictures)
    losses = {one: float(weight_B @ _losses(s_B - offset_B, pictures.new_B)) for one, s_B in fresh.items()}
    penalty = min(losses, key=lambda one: losses[one])
    weight_F, bias = _fitted(pictures, penalty)
    margin_B = pictures.logits_BK.max(1) - fresh[penalty]
    share = MOST_TAKEN * (pictures.known_B >= 0).sum() / max(1, _right(pictures).sum())
    lowered = min(0.0, _low_quantile(margin_B[_right(pictures)], share))
    found = float((margin_B[pictures.new_B] < lowered).mean())
    return NewRow(weight_F, bias + lowered, penalty, found)


def _right(pictures: Pictures) -> NDArray[np.bool_]:
    return np.asarray((pictures.known_B >= 0) & (pictures.logits_BK.argmax(1) == pictures.known_B))


def _low_quantile(values_B: Floats, share: float) -> float:
    """Return the value below which a small share lies, from the TAIL of lowest values and its mean excess.

    The tail is taken to be exponential (Weissman, JASA 1978): the one or two lowest of a few hundred values, which a
    plain quantile would rest on, are mostly luck.
    """
    lowest_T = np.sort(values_B)[: max(2, int(TAIL * len(values_B)))]
    return float(lowest_T[-1] - (lowest_T[-1] - lowest_T).mean() * np.log(len(lowest_T) / len(values_B) / share))


def _weights(pictures: Pictures) -> Floats:
    """Return the weights with which the new class counts as much as an old one does on average."""
    known, classes = int((pictures.known_B >= 0).sum()), pictures.logits_BK.shape[1]
    return np.where(pictures.new_B, known / classes / pictures.new_B.sum(), 1.0)


def _losses(logit_B: Floats, new_B: NDArray[np.bool_]) -> Floats:
    return np.asarray(np.logaddexp(0, np.where(new_B, -logit_B, logit_B)))


def _cross_validated(pictures: Pictures, fold_B: NDArray[np.int64], penalty: float) -> Floats:
    """Return the new logit of each image by a row that was fitted without its fold, [B]."""
    fresh_B = np.zeros(len(fold_B))
    for fold in range(FOLDS):
        weight_F, bias = _fitted(pictures[fold_B != fold], penalty)
        fresh_B[fold_B == fold] = pictures.features_BF[fold_B == fold] @ weight_F + bias
    return fresh_B


def _fitted(pictures: Pictures, penalty: float) -> tuple[Floats, float]:
    """Fit the row for one ridge; return its weights and its bias for the features as they are."""
    mean_F, std_F = pictures.features_BF.mean(0), pictures.features_BF.std(0)
    std_F = np.where(std_F > 0, std_F, 1.0)
    x_BF = (pictures.features_BF - mean_F) / std_F
    offset_B, weight_B = logsumexp(pictures.logits_BK, axis=1), _weights(pictures)
    ridge_D = np.append(0.0, np.full(x_BF.shape[1], penalty * weight_B[pictures.new_B].sum()))
    design_BD = np.column_stack([np.ones(len(x_BF)), x_BF])

    def loss(row_D: Floats) -> float:
        return float(weight_B @ _losses(design_BD @ row_D - offset_B, pictures.new_B) + ridge_D @ row_D**2 / 2)

    row_D = np.append(offset_B.mean(), np.zeros(x_BF.shape[1]))
    for _ in range(STEPS):  # Newton's; features hang together too much for L-BFGS
        chance_B = expit(design_BD @ row_D - offset_B)
        gradient_D = design_BD.T @ (weight_B * (chance_B - pictures.new_B)) + ridge_D * row_D
        curvature_B = weight_B * chance_B * (1 - chance_B)
        step_D = np.linalg.solve(design_BD.T @ (design_BD * curvature_B[:, None]) + np.diag(ridge_D + TINY), gradient_D)
        length = next((one for one in HALVINGS if loss(row_D - one * step_D) < loss(row_D)), 0.0)
        row_D = row_D - length * step_D
        if gradient_D @ step_D * length < TOLERANCE * weight_B.sum():
            break
    weight_F = row_D[1:] / std_F
    return weight_F, float(row_D[0] - weight_F @ mean_F)
