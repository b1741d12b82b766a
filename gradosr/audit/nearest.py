"""The known images that are most like a cluster, and like an image: held-out ones, of which the bundle keeps a few.

They are found by the classifier's features, in the space that the clusters were found in; the bundle holds no
embeddings by another network.

E examples, D components.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradosr.audit.clusters import Groups
from gradosr.bundle.examples import KnownExamples

OF_CLUSTER, OF_IMAGE = 6, 4
"""Number of known images that are named beside a cluster, and beside an image."""


@dataclass
class Nearest:
    """The nearest known images of everything that is listed."""

    of_cluster: dict[str, list[str]] = field(default_factory=dict)
    """Ids of known images by the id of the cluster, or by the name of the class of look-alikes; nearest first."""
    of_image: dict[str, list[str]] = field(default_factory=dict)
    """Ids of known images by the id of the row; nearest first."""
    images: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The known images that are named, by id, as they appear in audit.json."""
    pictures: dict[str, bytes] = field(default_factory=dict)
    """Their JPEGs by id."""


def nearest(groups: Groups, examples: KnownExamples | None, listed: Iterable[Mapping[str, Any]]) -> Nearest:
    """Find the nearest known images of the clusters, and of those of the rows `listed` that were considered."""
    found = Nearest()
    if examples is None or groups.space is None or groups.method is None or groups.method["space"] != "features":
        return found
    examples_ED = groups.space.project(examples.features_NF)
    points = {row["id"]: point for row, point in zip(groups.rows, groups.space.points_ND, strict=True)}
    members: dict[str, list[NDArray[np.floating]]] = {}
    for name, cluster in groups.group_of.items():
        members.setdefault(cluster, []).append(points[name])
    for item in groups.items:
        found.of_cluster[item["id"]] = _ids(np.mean(members[item["id"]], axis=0), examples_ED, OF_CLUSTER)
    for one in groups.look_alikes:
        centre = np.mean([points[row["id"]] for row in one["typical"]], axis=0)
        found.of_cluster[one["class"]] = _ids(centre, examples_ED, OF_CLUSTER)
    for row in listed:
        if row["id"] in points:
            found.of_image[row["id"]] = _ids(points[row["id"]], examples_ED, OF_IMAGE)
    _describe(found, examples)
    return found


def _ids(point_D: NDArray[np.floating], examples_ED: NDArray[np.floating], count: int) -> list[str]:
    distance_E = np.linalg.norm(examples_ED - point_D, axis=1)
    return [_id(place) for place in np.argsort(distance_E, kind="stable")[:count].tolist()]


def _id(place: int) -> str:
    return f"k-{place:04}"


def _describe(found: Nearest, examples: KnownExamples) -> None:
    named = {name for ids in (*found.of_cluster.values(), *found.of_image.values()) for name in ids}
    for place, (name, key, jpeg) in enumerate(zip(examples.classes, examples.keys, examples.pictures, strict=True)):
        if _id(place) in named:
            found.images[_id(place)] = {"class": name, "key": key, "picture": jpeg is not None}
            if jpeg is not None:
                found.pictures[_id(place)] = jpeg
