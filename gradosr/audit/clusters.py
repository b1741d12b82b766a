"""Clusters of look-alike images among those over the threshold: candidates for new classes.

They are found in the classifier's penultimate features, in those of a second network, or in the user's own embeddings
(space.py, dense.py, consensus.py). A cluster is named after the smallest id of its members, so that it keeps its name
when images join it. Images that are more like a known class than like each other are kept out of clusters and counted
by that class; many of them are false alarms.

N images of the sample, F values of a vector, D components, G images of a cluster.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradosr.audit.consensus import Found, find
from gradosr.audit.dense import find_dense
from gradosr.audit.false_alarms import FalseAlarms
from gradosr.audit.material import Material
from gradosr.audit.places import folder_of
from gradosr.audit.space import Space, space_of

FEWEST = 10
"""Minimum number of images in a cluster; in a large sample the minimum is one image in 50."""
TYPICAL, BORDERLINE, PLACES, LABELS = 12, 6, 10, 10
HOW = "score with `features: unknown` (--set features=unknown, into a new output) to have groups"

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Groups:
    """The clusters found among the images over the threshold."""

    reason: str | None
    """The reason that there are no clusters; None if there are some."""
    considered: int = 0
    left_over: int = 0
    """Number of images that belong to no cluster."""
    items: tuple[dict[str, Any], ...] = ()
    """The clusters as they appear in audit.json, largest first."""
    group_of: dict[str, str] = field(default_factory=dict)
    """The id of each clustered image, mapped to the id of its cluster."""
    look_alikes: tuple[dict[str, Any], ...] = ()
    """The images that are like a known class, by class, most images first; they are left over."""
    method: dict[str, Any] | None = None
    """The vectors that were compared, and whether known images were among them."""
    rows: Sequence[dict[str, Any]] = ()
    """The images that were considered."""
    not_embedded: int = 0
    """Number of images that were sampled and have no embedding."""
    space: Space | None = None
    """Their places, and those of other vectors; None if there were too few."""


def group(
    material: Material, false_alarms: FalseAlarms | None, most: int, kind: str, classes: Sequence[str] = ()
) -> Groups:
    """Cluster images and return the `most` largest clusters; `kind` is that of the input, `classes` the known ones."""
    rows = material.rows
    if not len(rows):
        return Groups(_why_none(material))
    if len(rows) < 2 * FEWEST:
        return Groups(f"{len(rows)} images over the threshold are too few to group", len(rows))
    fewest = max(FEWEST, len(rows) // 50)
    space = space_of(material.vectors_NF, material.predicted_N, material.reference, fewest)
    found = find_dense(space, fewest) or find(space.points_ND, space.known_KD, fewest)
    facts = _Facts(rows, space.points_ND, found, false_alarms, kind)
    items: list[dict[str, Any]] = []
    group_of: dict[str, str] = {}
    for label in range(found.labels_N.max() + 1):
        members_G = np.flatnonzero(found.labels_N == label)
        item = facts.item(members_G)
        items.append(item)
        group_of |= {rows[place]["id"]: item["id"] for place in members_G.tolist()}
    items.sort(key=lambda item: (-item["size"], item["id"]))
    return Groups(
        None if items else "no group: the images over the threshold are each like no other",
        len(rows),
        len(rows) - len(group_of),
        tuple(items[:most]),
        group_of,
        tuple(facts.look_alikes([classes[k] for k in space.classes])),
        {"space": material.kind, "known": bool(space.classes)},
        rows,
        material.without if material.kind != "features" else 0,
        space,
    )


def _why_none(material: Material) -> str:
    if material.without and material.kind != "features":
        return f"none of {material.without} images over the threshold has an embedding"
    if material.without:
        return f"no features stored for the {material.without} images over the threshold; {HOW}"
    return "no image is over the threshold"


@dataclass(frozen=True)
class _Facts:
    """Everything that is told of a cluster."""

    rows: Sequence[dict[str, Any]]
    points_ND: Floats
    found: Found
    false_alarms: FalseAlarms | None
    kind: str

    def item(self, members_G: NDArray[np.integer]) -> dict[str, Any]:
        """Describe one cluster."""
        members = [self.rows[place] for place in members_G.tolist()]
        points_GD, strength_G = self.points_ND[members_G], self.found.strength_N[members_G]
        distance_G = np.linalg.norm(points_GD - points_GD.mean(0), axis=1)
        typical = np.lexsort((distance_G, -strength_G))[:TYPICAL].tolist()
        borderline = [place for place in np.lexsort((-distance_G, strength_G)).tolist() if place not in typical]
        labels = [row["label"] for row in members if row["label"] is not None]
        return {
            "id": "g-" + min(row["id"] for row in members)[:8],
            "size": len(members),
            **self._expected(members),
            "labelled": len(labels),
            "labels": _counted(labels, LABELS),
            "nearest_class": _most([row["predicted_class"] for row in members])[0][0],
            "days": _days(members),
            "prefixes": _counted([folder_of(self.kind, row["shard"], row["key"]) for row in members], PLACES),
            "shards": _counted([row["shard"] for row in members], PLACES),
            "typical": [members[place] for place in typical],
            "borderline": [members[place] for place in borderline[:BORDERLINE]],
        }

    def look_alikes(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Describe the images in no cluster that are like a known class, by class."""
        found = []
        for label, name in enumerate(names):
            places = np.flatnonzero((self.found.labels_N < 0) & (self.found.resembled_N == label))
            rows = [self.rows[place] for place in places.tolist()]
            nearest = np.argsort(-self.found.strength_N[places], kind="stable")[:BORDERLINE].tolist()
            if rows:
                typical = [rows[place] for place in nearest]
                found.append({"class": name, "images": len(rows), **self._expected(rows), "typical": typical})
        return sorted(found, key=lambda one: (-one["images"], one["class"]))

    def _expected(self, rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
        expected = None
        if self.false_alarms is not None:
            expected = float(self.false_alarms([row["p_value"] for row in rows]).sum())
        share = None if expected is None else expected / len(rows)
        return {"expected_false_alarms": expected, "false_alarm_share": share}


def _days(rows: Sequence[dict[str, Any]]) -> dict[str, str] | None:
    days = [row["day"] for row in rows if row["day"]]
    return {"first": min(days), "last": max(days)} if days else None


def _counted(names: Sequence[str], limit: int) -> list[dict[str, Any]]:
    return [{"name": name, "images": images} for name, images in _most(names)[:limit]]


def _most(names: Sequence[str]) -> list[tuple[str, int]]:
    """Return names and their counts, most frequent first; ties are in alphabetical order."""
    return sorted(Counter(names).items(), key=lambda item: (-item[1], item[0]))
