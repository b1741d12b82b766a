"""Clusters as the consensus of many runs of k-means, in which known classes take part as clusters that do not move.

Each run draws its number of new clusters, and the images and components that it sees (evidence accumulation, Fred and
Jain 2005). In a run, an image that is nearest to a known class is in no new cluster (after the semi-supervised k-means
of Vaze et al. 2022). Two images are as alike as the share of runs that put them into the same new cluster. Average
linkage by that likeness gives the clusters.

R runs, N images, D components, K known classes, J new clusters of a run, C clusters.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RUNS = 60
FEWEST_NEW, MOST_NEW = 4, 10
"""Bounds of the number of new clusters in a run."""
IMAGES, AXES = 0.7, 0.7
"""Shares of the images and of the components that a run sees."""
LINKED = 3_000
"""Most images that are linked with each other; the others join the clusters of these."""
STEPS = 30
MOSTLY = 0.5
"""Share of the runs in which an image has to be in a new cluster to belong to any."""
ALIKE = 0.4
"""Least mean likeness of the two halves of a cluster."""

Floats = NDArray[np.floating]
Labels = NDArray[np.integer]


@dataclass(frozen=True)
class Found:
    """The clusters of images."""

    labels_N: Labels
    """Cluster of each image; -1 for none."""
    strength_N: Floats
    """Mean likeness of each image to the images of its cluster, or the share of runs in which it is like its class."""
    resembled_N: Labels
    """The known class that an image is put to most often, if that is in most runs; otherwise -1."""


def find(points_ND: Floats, known_KD: Floats, fewest: int) -> Found:
    """Cluster points, the first of which are as good as drawn at random; a cluster has at least `fewest` of them."""
    rng, known, linked = np.random.default_rng(0), len(known_KD), min(len(points_ND), LINKED)
    runs_RN = np.stack([_run(points_ND, known_KD, linked, rng) for _ in range(RUNS)])
    parts_L = _linked(runs_RN[:, :linked], known, fewest * linked / len(points_ND))
    likeness_NC = _likeness(runs_RN, known, parts_L)
    strength_N = likeness_NC.max(1, initial=0)
    labels_N = np.where(strength_N >= ALIKE, likeness_NC.argmax(1) if parts_L.max() >= 0 else -1, -1)
    large = np.flatnonzero(np.bincount(labels_N[labels_N >= 0]) >= fewest)
    labels_N = np.where(np.isin(labels_N, large), np.searchsorted(large, labels_N), -1)
    times_NK = np.stack([(runs_RN == label).mean(0) for label in range(known)], 1) if known else None
    if times_NK is None:
        return Found(labels_N, strength_N, np.full(len(points_ND), -1))
    alike_N = (labels_N < 0) & (times_NK.sum(1) > 1 - MOSTLY)
    resembled_N = np.where(alike_N, times_NK.argmax(1), -1)
    return Found(labels_N, np.where(alike_N, times_NK.max(1), strength_N), resembled_N)


def _run(points_ND: Floats, known_KD: Floats, linked: int, rng: np.random.Generator) -> Labels:
    """Run k-means once; return the cluster of each point: first the known classes, then the new clusters."""
    axes = rng.permutation(points_ND.shape[1])[: max(1, round(AXES * points_ND.shape[1]))]
    seen = rng.permutation(linked)[: max(1, round(IMAGES * linked))]
    count = int(rng.integers(FEWEST_NEW, MOST_NEW + 1))
    points = points_ND[:, axes]
    centres = _k_means(points[seen], known_KD[:, axes], count, rng)
    return np.asarray(squared(points, centres).argmin(1), np.int16)


def _k_means(points_ND: Floats, known_KD: Floats, count: int, rng: np.random.Generator) -> Floats:
    """Return the known centres and `count` new ones, which k-means has moved from where k-means++ drew them."""
    centres, known = known_KD, len(known_KD)
    nearest_N = squared(points_ND, centres).min(1, initial=np.inf)
    for _ in range(count):
        weights_N = np.ones(len(points_ND)) if np.isinf(nearest_N[0]) else np.maximum(nearest_N, 1e-12)
        drawn = points_ND[rng.choice(len(points_ND), p=weights_N / weights_N.sum())]
        centres = np.vstack([centres, drawn])
        nearest_N = np.minimum(nearest_N, squared(points_ND, drawn[None])[:, 0])
    for _ in range(STEPS):
        labels_N = squared(points_ND, centres).argmin(1)
        before, centres = centres, centres.copy()
        for label in range(known, known + count):
            if (labels_N == label).any():
                centres[label] = points_ND[labels_N == label].mean(0)
        if np.allclose(before, centres, atol=1e-4):
            break
    return centres


def squared(points_ND: Floats, centres_KD: Floats) -> Floats:
    """Return squared distances [N, K]."""
    squares = (points_ND**2).sum(1)[:, None] - 2 * points_ND @ centres_KD.T + (centres_KD**2).sum(1)
    return np.asarray(np.maximum(squares, 0))


def _linked(runs_RL: Labels, known: int, fewest: float) -> Labels:
    """Link images by their likeness; return the cluster of each, -1 for those in a cluster of fewer than `fewest`."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    new = np.flatnonzero((runs_RL >= known).mean(0) >= MOSTLY)
    labels_L = np.full(runs_RL.shape[1], -1)
    if len(new) < 2:
        return labels_L
    unlike = np.ones((len(new), len(new)), np.float32)
    for run in runs_RL[:, new]:
        member = (run[:, None] == np.arange(known, run.max() + 1)).astype(np.float32)
        unlike -= member @ member.T / len(runs_RL)
    np.fill_diagonal(unlike, 0)
    tree = linkage(squareform(np.maximum(unlike, 0), checks=False), "average")
    parts = fcluster(tree, 1 - ALIKE, "distance")
    sizes = np.bincount(parts)
    for label, part in enumerate(np.flatnonzero(sizes >= max(2, fewest))):
        labels_L[new[parts == part]] = label
    return labels_L


def _likeness(runs_RN: Labels, known: int, parts_L: Labels) -> Floats:
    """Return the mean likeness of each image to the images of each cluster [N, C]."""
    count = parts_L.max() + 1
    likeness_NC = np.zeros((runs_RN.shape[1], count))
    sizes_C = np.bincount(parts_L[parts_L >= 0], minlength=count)
    for run in runs_RN:
        inside = (parts_L >= 0) & (run[: len(parts_L)] >= known)
        shares_KC = np.zeros((run.max() + 1, count))
        np.add.at(shares_KC, (run[: len(parts_L)][inside], parts_L[inside]), 1)
        likeness_NC += (shares_KC / sizes_C)[run]
    return likeness_NC / len(runs_RN)
