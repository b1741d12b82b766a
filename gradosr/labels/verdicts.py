"""Verdicts: the opinions of several people merged into one per image, and the conflicts between them."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import pyarrow as pa

KNOWN, UNKNOWN = "known", "unknown"
"""Labels that name no class: one of the known classes, and none of them."""
SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("shard", pa.string()),
        pa.field("label", pa.string(), nullable=False),
        pa.field("unknown", pa.bool_(), nullable=False),
        pa.field("drawn", pa.float64()),
    ]
)


def verdicts(labels: pa.Table, classes: Collection[str]) -> pa.Table:
    """Return key, shard, label, unknown and drawn of each image, in order of their first opinions.

    `classes` are the known classes. Each person's latest opinion counts. A name is more than `known` or `unknown` and
    does not contradict it; images on which people disagree are left out, and `conflicts` lists them.
    """
    settled = []
    for key, opinions in _by_key(labels):
        names = _names(opinions, classes)
        if len(names) == 1:
            row = next((one for one in opinions.values() if one["shard"] is not None), next(iter(opinions.values())))
            (label,) = names
            settled.append({**row, "key": key, "label": label, "unknown": is_unknown(label, classes)})
    return pa.Table.from_pylist(settled, SCHEMA)


def conflicts(labels: pa.Table, classes: Collection[str]) -> list[dict[str, Any]]:
    """Return the images on which people disagree, each with `key` and `opinions` (label by person)."""
    return [
        {"key": key, "opinions": {who: row["label"] for who, row in opinions.items()}}
        for key, opinions in _by_key(labels)
        if len(_names(opinions, classes)) > 1
    ]


def is_unknown(label: str, classes: Collection[str]) -> bool:
    """Tell whether a label says that an image is of none of the known classes."""
    return label != KNOWN and label not in classes


def _by_key(labels: pa.Table) -> Iterator[tuple[str, Mapping[str, dict[str, Any]]]]:
    """Yield each key with the latest opinion of each person; of opinions of one time the later row."""
    by_key: dict[str, dict[str, dict[str, Any]]] = {}
    for row in labels.to_pylist():
        opinions = by_key.setdefault(row["key"], {})
        before = opinions.get(row["who"])
        if before is None or row["when"] >= before["when"]:
            opinions[row["who"]] = row
    yield from by_key.items()


def _names(opinions: Mapping[str, Mapping[str, Any]], classes: Collection[str]) -> set[str]:
    """Return what remains of the opinions when one that names a class stands for those that only agree with it."""
    said = {str(row["label"]) for row in opinions.values()}
    unknown = {is_unknown(label, classes) for label in said}
    named = said - {KNOWN, UNKNOWN}
    return named if named and len(unknown) == 1 else said
