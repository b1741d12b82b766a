"""Sentences for a night's screening."""

from collections.abc import Mapping
from typing import Any

from gradosr.audit.text import interval, percent, plural

MUCH = 0.5
"""Share of unknown images from which a night says that no gate watches it, if none does."""


def headline(night: Mapping[str, Any]) -> str:
    """Return the sentence with which the page begins: how much is unknown, and how many gates tripped."""
    counts, tripped = night["counts"], len(night["tripped"])
    gates = f"{plural(tripped, 'gate')} tripped" if tripped else "no gate tripped"
    return (
        f"{night['night']}: {share(night)}; {gates}" if counts["images"] else f"{night['night']}: no new image; {gates}"
    )


def share(night: Mapping[str, Any]) -> str:
    """Return how much of the new images is unknown, or else over the threshold."""
    counts, found = night["counts"], night.get("unknown_share")
    new = plural(counts["images"], "new image")
    if found is None:
        return f"{percent(counts['unknown'] / max(1, counts['images']))} of {new} over the threshold"
    return f"about {percent(found['estimate'])} of {new} unknown ({interval(found['low'], found['high'])})"


def watched(night: Mapping[str, Any]) -> str:
    """Return a warning if most new images are unknown and no gate has an absolute bound; empty if not."""
    counts, found = night["counts"], night.get("unknown_share")
    much = found["low"] if found else counts["unknown"] / max(1, counts["images"])
    if much < MUCH or any(one["gate"] == "unknown_rate" for one in night["verdicts"]):
        return ""
    what = "unknown" if found else "over the threshold"
    return (
        f"Most of the new images are {what}, and none of the gates that are set watches that. Set gates.unknown_rate "
        "to the share of new images over the threshold that is still all right."
    )
