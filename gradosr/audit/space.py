"""The space in which images are compared: close together what looks alike, whatever its known class varies by.

Vectors are centred on the known classes and whitened by what the known images of one class vary by (the metric of
linear discriminant analysis), scaled to unit length, and projected onto the principal components of the images over the
threshold. Without known images to compare with, they are scaled to unit length and projected alone.

N images, M known images, F values of a vector, D principal components, K known classes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

COMPONENTS = 32
SHRINKAGE = 0.1
"""Share of a multiple of the unit matrix in the covariance within classes."""

Floats = NDArray[np.floating]
Single = NDArray[np.float32]


@dataclass(frozen=True)
class Reference:
    """Known images as vectors."""

    vectors_MF: Floats
    predicted_M: NDArray[np.integer]
    """Index of the class that the classifier predicts."""


@dataclass(frozen=True)
class Space:
    """Images over the threshold as points, and the map into their space."""

    points_ND: NDArray[np.float64]
    known_KD: NDArray[np.float64]
    """Means of the known classes that are compared with, in the order of `classes`."""
    radius_K: NDArray[np.float64]
    """Median distance of a class's known images from its mean."""
    classes: tuple[int, ...]
    """Indices of these classes."""
    project: Callable[[Floats], NDArray[np.float64]]
    """Returns the points of other vectors."""


def space_of(vectors_NF: Floats, predicted_N: NDArray[np.integer], reference: Reference | None, least: int) -> Space:
    """Return the space of vectors; a known class takes part if it is predicted of at least `least` of the images."""
    centre_F: Single = np.zeros(vectors_NF.shape[1], np.float32)
    root_FF: Single | None = None
    if reference is not None:
        centre_F, root_FF = _within(reference)
    unit_NF = _unit(vectors_NF, centre_F, root_FF)
    mean_F = unit_NF.mean(0)
    axes_FD = _principal(unit_NF - mean_F)

    def project(more_NF: Floats) -> NDArray[np.float64]:
        return np.asarray((_unit(more_NF, centre_F, root_FF) - mean_F) @ axes_FD, np.float64)

    points_ND = np.asarray((unit_NF - mean_F) @ axes_FD, np.float64)
    if reference is None:
        return Space(points_ND, np.empty((0, points_ND.shape[1])), np.empty(0), (), project)
    often, known_MD = np.bincount(predicted_N[predicted_N >= 0]), project(reference.vectors_MF)
    classes = [int(k) for k in np.unique(reference.predicted_M) if k < len(often) and often[k] >= least]
    own = [known_MD[reference.predicted_M == k] for k in classes]
    means_KD = np.reshape([one_MD.mean(0) for one_MD in own], (len(classes), points_ND.shape[1]))
    radii = [np.median(np.linalg.norm(one_MD - mean_D, axis=1)) for one_MD, mean_D in zip(own, means_KD, strict=True)]
    return Space(points_ND, means_KD, np.array(radii), tuple(classes), project)


def _within(reference: Reference) -> tuple[Single, Single]:
    """Return the mean of the classes' means, and the Cholesky root of the covariance within classes."""
    x_MF = _finite(reference.vectors_MF)
    classes, place_M = np.unique(reference.predicted_M, return_inverse=True)
    means_KF = np.stack([x_MF[place_M == place].mean(0) for place in range(len(classes))])
    rest_MF = x_MF - means_KF[place_M]
    covariance_FF = (rest_MF.T @ rest_MF).astype(np.float64) / len(x_MF)
    size = max(np.trace(covariance_FF) / len(covariance_FF), 1e-12)
    covariance_FF = (1 - SHRINKAGE) * covariance_FF + SHRINKAGE * size * np.eye(len(covariance_FF))
    return means_KF.mean(0), np.linalg.cholesky(covariance_FF).astype(np.float32)


def _unit(vectors_NF: Floats, centre_F: Single, root_FF: Single | None) -> Single:
    from scipy.linalg import solve_triangular  # takes a while, which audits with clusters alone need

    x_NF = _finite(vectors_NF) - centre_F
    if root_FF is not None:
        x_NF = solve_triangular(root_FF, x_NF.T, lower=True, check_finite=False).T
    x_NF /= np.maximum(np.linalg.norm(x_NF, axis=1, keepdims=True), 1e-12)
    return x_NF


def _finite(vectors_NF: Floats) -> Single:
    return np.nan_to_num(vectors_NF.astype(np.float32), nan=0.0, posinf=65504.0, neginf=-65504.0)


def _principal(centred_NF: Single) -> Single:
    """Return the first principal axes [F, D] of centred vectors; deterministic."""
    covariance_FF = (centred_NF.T @ centred_NF).astype(np.float64) / len(centred_NF)
    _, axes_FF = np.linalg.eigh(covariance_FF)
    return axes_FF[:, ::-1][:, :COMPONENTS].astype(np.float32)
