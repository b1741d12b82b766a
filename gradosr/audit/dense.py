"""Clusters that are dense and apart from each other, as those of images far from the known classes often are.

HDBSCAN (Campello et al. 2013, in scikit-learn's implementation, the leaves of its tree) runs on the first components.
It finds nothing, or one cluster of everything, where classes run into each other; consensus.py divides such images.
"""

import numpy as np

from gradosr.audit.consensus import Found, Labels, squared
from gradosr.audit.space import Space

AXES = 6
"""Components that are looked at; in more dimensions fewer images are dense."""
CLUSTERED = 1 / 3
"""Least share of the images in clusters."""
BLOB = 0.8
"""Largest share of the clustered images in one cluster, which may be one class, or simply everything."""
NEIGHBOURS = 5


def find_dense(space: Space, fewest: int) -> Found | None:
    """Cluster points; None if too few of them are in clusters. A cluster has at least `fewest` points."""
    from sklearn.cluster import HDBSCAN  # takes a second, which audits with clusters alone need

    model = HDBSCAN(min_cluster_size=fewest, min_samples=NEIGHBOURS, cluster_selection_method="leaf", copy=True)
    found = model.fit(space.points_ND[:, :AXES])
    labels_N: Labels = found.labels_
    sizes_C = np.bincount(labels_N[labels_N >= 0], minlength=1)
    if sizes_C.sum() < CLUSTERED * len(labels_N) or sizes_C.max() > BLOB * sizes_C.sum():
        return None
    return _without_known(space, labels_N, found.probabilities_)


def _without_known(space: Space, labels_N: Labels, strength_N: np.ndarray) -> Found:
    """Take out the clusters whose mean lies within a known class, and tell which class the images in none are like."""
    means_CD = np.stack([space.points_ND[labels_N == label].mean(0) for label in range(labels_N.max() + 1)])
    inside_C = np.full(len(means_CD), -1)
    resembled_N = np.full(len(labels_N), -1)
    if len(space.known_KD):
        apart_CK = np.sqrt(squared(means_CD, space.known_KD))
        nearest_C = apart_CK.argmin(1)
        inside_C = np.where(apart_CK.min(1) < space.radius_K[nearest_C], nearest_C, -1)
        centres = np.concatenate([space.known_KD, means_CD])
        nearest_N = squared(space.points_ND, centres).argmin(1)
        loose_N = (labels_N < 0) & (nearest_N < len(space.known_KD))
        resembled_N = np.where(loose_N, nearest_N, np.where(labels_N >= 0, inside_C[labels_N], -1))
    kept = np.flatnonzero(inside_C < 0)
    labels_N = np.where(np.isin(labels_N, kept), np.searchsorted(kept, labels_N), -1)
    return Found(labels_N, strength_N, resembled_N)
