"""Clusters among the images of a round: those that look alike are looked at together, and can be named at once."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gradosr.audit.clusters import group
from gradosr.audit.known import bundle_of, read_known_images
from gradosr.audit.material import stored, vectors_of
from gradosr.audit.rows import RunTable
from gradosr.audit.tally import DESCRIBED, Sample, count
from gradosr.config import AuditSettings
from gradosr.store import Store


def clusters(store: Store, table: RunTable, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, str]:
    """Return the cluster of images by id, found as an audit finds them, with `rows` in the sample for certain.

    Empty for a run scored without features or embeddings.
    """
    vectors = vectors_of(table)
    with table.open(table.parts[0]) as opened:
        if vectors not in opened.columns:
            return {}
    settings = AuditSettings()
    tally = count(table, None, settings.group_sample, vectors=vectors)
    _add(tally.sample, table, rows, vectors)
    bundle, _ = bundle_of(store, table, settings)
    known, _ = read_known_images(store, bundle)
    material = stored(table, tally, known.reference)
    return group(material, None, settings.max_groups, table.kind, table.about["classes"]).group_of


def _add(sample: Sample, table: RunTable, rows: Sequence[Mapping[str, Any]], vectors: str) -> None:
    """Add those of the rows that have such vectors and are not in the sample."""
    there = {row["id"] for row in sample.settled()[0]}
    for row in rows:
        if row["id"] not in there:
            part, number, place = row["at"]
            with table.open(part) as opened:
                found = opened.group(number, [*DESCRIBED, vectors]).slice(place, 1)
            values = found[vectors][0].values
            if values is not None:
                first = np.zeros(1, np.uint64)  # no hash is smaller, so it stays
                sample.add(first, found, opened.modified, values.to_numpy(zero_copy_only=False)[None])


def in_order(
    rows: Sequence[Mapping[str, Any]], group_of: Mapping[str, str], seed: tuple[int, int]
) -> list[dict[str, Any]]:
    """Return rows with their clusters, those of one cluster together, and otherwise in an order drawn at random.

    Whoever stops in the middle has labelled images that are as good as drawn, and nobody sees by the place of an image
    how high it scores.
    """
    blocks: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        cluster = group_of.get(row["id"])
        blocks.setdefault(cluster or row["id"], []).append({**row, "cluster": cluster})
    order = np.random.default_rng(seed).permutation(len(blocks))
    ordered = list(blocks.values())
    return [row for place in order.tolist() for row in ordered[place]]
