"""Shares of an archive by the labels of images that were drawn at random, without any assumption on the images.

A label tells with which probability its image was drawn (`drawn`). Labels of the same probability, on the same side of
the threshold, make a stratum: n labels drawn with probability p stand for n / p images. Images that were drawn and got
no verdict are taken to be like the others of their stratum.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from gradosr.audit.proportions import Stratum, more_to_halve, stratified

ENOUGH = 20
"""Least number of labels of drawn images for a figure; with fewer, the interval says next to nothing."""


def by_labels(verdicts: pa.Table, over: Mapping[str, bool]) -> dict[str, Any]:
    """Return the share of unknown images, and the precision of the images over the threshold, as labels have them.

    `verdicts` has a row per labelled image, as gradosr.labels has them; `over` tells of each whether it is over the
    threshold, and images that it does not name are left out. A figure that cannot be told is None.
    """
    rows = [row for row in verdicts.select(["key", "unknown", "drawn"]).to_pylist() if row["key"] in over]
    drawn = [row for row in rows if row["drawn"] is not None and 0 < row["drawn"] <= 1]
    facts: dict[str, Any] = {"labelled": len(rows), "drawn": len(drawn), "needed": ENOUGH}
    facts |= {"unknown_share": None, "precision": None}
    if len(drawn) >= ENOUGH:
        facts["unknown_share"] = _figure(drawn, over)
        facts["precision"] = _figure([row for row in drawn if over[row["key"]]], over)
    return facts


def _figure(rows: Sequence[Mapping[str, Any]], over: Mapping[str, bool]) -> dict[str, Any] | None:
    if not rows:
        return None
    counts: defaultdict[tuple[bool, float], list[bool]] = defaultdict(list)
    for row in rows:
        counts[over[row["key"]], row["drawn"]].append(row["unknown"])
    strata = [
        Stratum(len(unknown) / probability, len(unknown), sum(unknown)) for (_, probability), unknown in counts.items()
    ]
    estimate, low, high = stratified(strata)
    more = more_to_halve(strata)
    return {"estimate": estimate, "low": low, "high": high, "labels": len(rows), "labels_to_halve": more}
