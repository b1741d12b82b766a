"""A map of the images over the threshold: two coordinates each, in which those lie close together that look alike.

audit.json holds it as `map`, parallel lists of at most MOST images: `x` and `y` (from 0 to 1, on one scale, y upwards),
`ids` and `keys` of the rows, `groups` (the id of the cluster, or null) and `predicted` (index of the predicted class),
and `method`. It is t-SNE (van der Maaten and Hinton 2008) of the space that the clusters were found in: neighbours are
alike, but distances between far clusters mean nothing.
"""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradosr.audit.clusters import Groups
from gradosr.audit.rows import shown

MOST = 1_500
"""Most images on a map; t-SNE of as many takes seconds."""
FEWEST = 30
"""Least number of images for t-SNE; fewer lie on their first two principal components."""
STEPS = 500

Floats = NDArray[np.floating]


def map_of(groups: Groups, listed: Collection[str], classes: Sequence[str]) -> dict[str, Any] | None:
    """Return the map of the images that were clustered, those with the ids `listed` first; None if there are none."""
    if groups.space is None:
        return None
    first = [place for place, row in enumerate(groups.rows) if row["id"] in listed]
    rest = [place for place, row in enumerate(groups.rows) if row["id"] not in listed]
    places = sorted([*first, *rest][:MOST])
    rows, points_ND = [groups.rows[place] for place in places], groups.space.points_ND[places]
    points_ND = np.pad(points_ND, ((0, 0), (0, 2)))  # vectors of one value have one component
    method = "t-SNE" if len(places) >= FEWEST else "principal components"
    xy_N2 = _fitted(_tsne(points_ND) if method == "t-SNE" else points_ND[:, :2])
    index = {shown(name): place for place, name in enumerate(classes)}
    return {
        "method": method,
        "x": xy_N2[:, 0].tolist(),
        "y": xy_N2[:, 1].tolist(),
        "ids": [row["id"] for row in rows],
        "keys": [row["key"] for row in rows],
        "groups": [groups.group_of.get(row["id"]) for row in rows],
        "predicted": [index.get(row["predicted_class"]) for row in rows],
    }


def _tsne(points_ND: Floats) -> Floats:
    from sklearn.manifold import TSNE  # takes a second, which audits with a map alone need

    start_N2 = points_ND[:, :2] / max(points_ND[:, 0].std(), 1e-12) * 1e-4
    model = TSNE(2, perplexity=min(30.0, (len(points_ND) - 1) / 3), init=start_N2, max_iter=STEPS, random_state=0)
    return np.asarray(model.fit_transform(points_ND), np.float64)


def _fitted(xy_N2: Floats) -> Floats:
    """Shift and scale coordinates to 0..1, both by the same factor."""
    low_2, size = xy_N2.min(0), max(float(np.ptp(xy_N2, axis=0).max()), 1e-12)
    return np.asarray(np.round((xy_N2 - low_2) / size, 4))
