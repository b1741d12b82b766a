"""Clusters of look-alike images among those over the threshold: candidates for new classes.

HDBSCAN (Campello et al. 2013, in scikit-learn's implementation) runs on the penultimate features, scaled to unit length
and projected onto their principal components. A cluster is named after the smallest id of its members, so that it keeps
its name when images join it.

N images of the sample, F features, D principal components, G images of a cluster.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradosr.audit.places import folder_of
from gradosr.audit.tally import Sample

COMPONENTS = 16
BLOB = 0.8
"""A cluster with more than this share of the images is not informative: it may be one class, or simply everything."""
FEWEST = 10
"""Minimum number of images in a cluster; in a large sample the minimum is one image in 200."""
TYPICAL, BORDERLINE, PLACES = 12, 6, 10
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


@dataclass(frozen=True)
class FalseAlarms:
    """A model of how likely an image with a given p-value is to be known, averaged over the archive.

    The p-values of known images are uniform, so any excess over a uniform distribution comes from unknown images. The
    same shares are used in every cluster. Known images near the threshold may in fact concentrate in some clusters more
    than in others, which p-values cannot show.
    """

    edges: NDArray[np.float64]
    """Ascending p-values, starting at 0."""
    shares: NDArray[np.float64]
    """Share of known images between two neighbouring edges, from 0 to 1; it never decreases."""

    @classmethod
    def of(cls, counts_N: NDArray[np.integer], known: float, threshold: float) -> "FalseAlarms":
        """Fit the model to counts by p-value (j + 1) / N up to the threshold; `known` is the share of known images."""
        last = max(1, int(threshold * len(counts_N) + 1e-6))
        ranks = np.unique(np.concatenate([[0], np.geomspace(1, last, 12).astype(int), [last]]))
        found = np.add.reduceat(counts_N[:last].astype(np.int64), ranks[:-1])
        expected = known * counts_N.sum() * np.diff(ranks) / len(counts_N)
        return cls(ranks / len(counts_N), _never_falling(expected, found))

    def __call__(self, p_values: Sequence[float]) -> Floats:
        """Return the probability that each image is known."""
        cells = np.searchsorted(self.edges, np.asarray(p_values) - 1e-9) - 1
        return np.asarray(self.shares[np.clip(cells, 0, len(self.shares) - 1)])


def _never_falling(expected: Floats, found: NDArray[np.integer]) -> Floats:
    """Return expected / found as shares of at most 1 that never fall, by isotonic regression weighted by `found`."""
    from sklearn.isotonic import isotonic_regression  # takes a second, which audits with clusters alone need

    weights = np.maximum(found, 1e-9)
    shares: Floats = isotonic_regression(expected / weights, sample_weight=weights, y_max=1.0)
    return shares


def group(sample: Sample, without_features: int, false_alarms: FalseAlarms | None, most: int, kind: str) -> Groups:
    """Cluster a sample and return the `most` largest clusters; `kind` is that of the input."""
    rows, features_NF = sample.settled()
    if features_NF is None:
        return Groups(_why_none(without_features))
    if len(rows) < 2 * FEWEST:
        return Groups(f"{len(rows)} images over the threshold are too few to group", len(rows))
    points_ND = principal(features_NF)
    labels_N, strength_N = cluster(points_ND)
    items: list[dict[str, Any]] = []
    group_of: dict[str, str] = {}
    for label in range(labels_N.max() + 1):
        members_G = np.flatnonzero(labels_N == label)
        members = [rows[place] for place in members_G]
        items.append(_item(members, points_ND[members_G], strength_N[members_G], false_alarms, kind))
        group_of |= {row["id"]: items[-1]["id"] for row in members}
    items.sort(key=lambda item: (-item["size"], item["id"]))
    return Groups(
        None if items else "no group: the images over the threshold are each like no other",
        len(rows),
        int((labels_N < 0).sum()),
        tuple(items[:most]),
        group_of,
    )


def _why_none(without_features: int) -> str:
    if without_features:
        return f"no features stored for the {without_features} images over the threshold; {HOW}"
    return "no image is over the threshold"


def principal(features_NF: NDArray[np.float16]) -> Floats:
    """Project features, scaled to unit length, onto their first principal components [N, D]; deterministic."""
    x_NF = np.nan_to_num(features_NF.astype(np.float32), nan=0.0, posinf=65504.0, neginf=-65504.0)
    x_NF /= np.maximum(np.linalg.norm(x_NF, axis=1, keepdims=True), 1e-12)
    x_NF -= x_NF.mean(0)
    covariance_FF = (x_NF.T @ x_NF).astype(np.float64) / len(x_NF)
    _, vectors_FF = np.linalg.eigh(covariance_FF)
    return np.asarray(x_NF @ vectors_FF[:, ::-1][:, :COMPONENTS], np.float64)


def cluster(points_ND: Floats) -> tuple[NDArray[np.integer], Floats]:
    """Return the cluster of each point (-1 for none) and its membership strength, from 0 to 1.

    If nearly all points form one cluster, the directions of largest variance may hide the ones that matter. With all
    components weighted alike, unknown classes near the known ones come apart (six-class CIFAR-10 networks, the four
    other classes: clusters that hold 40 % of the images with a purity of .45, instead of one cluster with a purity of
    .25). The finer clusters are used if they hold a third of the points; a single class splits into fewer pieces.
    """
    labels_N, strength_N = _hdbscan(points_ND)
    if np.bincount(labels_N[labels_N >= 0], minlength=1).max() > BLOB * len(labels_N):
        alike_ND = points_ND / np.maximum(points_ND.std(0), 1e-12)
        alike_ND /= np.maximum(np.linalg.norm(alike_ND, axis=1, keepdims=True), 1e-12)
        finer = _hdbscan(alike_ND)
        if (finer[0] >= 0).mean() >= 1 / 3:
            return finer
    return labels_N, strength_N


def _hdbscan(points_ND: Floats) -> tuple[NDArray[np.integer], Floats]:
    from sklearn.cluster import HDBSCAN  # takes a second, which only this function needs

    fewest = max(FEWEST, len(points_ND) // 200)
    found = HDBSCAN(min_cluster_size=fewest, min_samples=fewest // 5, copy=True).fit(points_ND)
    return found.labels_, found.probabilities_


def _item(
    rows: Sequence[dict[str, Any]],
    points_GD: Floats,
    strength_G: Floats,
    false_alarms: FalseAlarms | None,
    kind: str,
) -> dict[str, Any]:
    distance_G = np.linalg.norm(points_GD - points_GD.mean(0), axis=1)
    typical = np.lexsort((distance_G, -strength_G))[:TYPICAL].tolist()
    borderline = [place for place in np.lexsort((-distance_G, strength_G)).tolist() if place not in typical]
    expected = None if false_alarms is None else float(false_alarms([row["p_value"] for row in rows]).sum())
    return {
        "id": "g-" + min(row["id"] for row in rows)[:8],
        "size": len(rows),
        "expected_false_alarms": expected,
        "false_alarm_share": None if expected is None else expected / len(rows),
        "nearest_class": _most([row["predicted_class"] for row in rows])[0][0],
        "prefixes": _places([folder_of(kind, row["shard"], row["key"]) for row in rows]),
        "shards": _places([row["shard"] for row in rows]),
        "typical": [rows[place] for place in typical],
        "borderline": [rows[place] for place in borderline[:BORDERLINE]],
    }


def _places(names: Sequence[str]) -> list[dict[str, Any]]:
    return [{"name": name, "images": images} for name, images in _most(names)[:PLACES]]


def _most(names: Sequence[str]) -> list[tuple[str, int]]:
    """Return names and their counts, most frequent first; ties are in alphabetical order."""
    return sorted(Counter(names).items(), key=lambda item: (-item[1], item[0]))
