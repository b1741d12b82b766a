"""The steps to take next, as the first screen of an audit tells them."""

import shlex
from collections.abc import Mapping
from typing import Any

from gradosr.audit.text import count, interval, percent, plural
from gradosr.audit.words import most_unknown

Document = Mapping[str, Any]
FIRST = 50
"""Number of images that the first round of labels has."""


def steps(document: Document) -> list[dict[str, str | None]]:
    """Return the steps in order of use; each has `what`, `why`, `link` and `command`, the last two may be None."""
    found = (_look(document), _label(document), _take(document))
    return [step for step in found if step] if document["images"] else []


def _step(what: str, why: str, link: str | None = None, command: str | None = None) -> dict[str, str | None]:
    return {"what": what, "why": why, "link": link, "command": command}


def _look(document: Document) -> dict[str, str | None] | None:
    clusters = document["groups"]["items"]
    worth = [one for one in clusters if not one.get("look_alike")]
    if worth:
        which = "this cluster" if len(worth) == 1 else f"these {count(len(worth))} clusters"
        images = sum(one["size"] for one in worth)
        return _step(f"Look at {which}.", f"They hold {plural(images, 'image')} that look alike.", "#groups")
    if document["unknown"]:
        return _step(
            f"Look at the images with the {most_unknown(document)}.", "No cluster stands out among them.", "#flags"
        )
    return None


def _label(document: Document) -> dict[str, str | None] | None:
    if not document["unknown"]:
        return None
    labels, uri = document["labels"], shlex.quote(document["results"]["uri"])
    share = labels["unknown_share"] if labels else None
    number, why = FIRST, "Then the share of unknown images is told by labels, without any assumption."
    if share and share["labels_to_halve"]:
        number = max(10, min(1000, share["labels_to_halve"]))
        why = f"That halves the interval by labels, now {interval(share['low'], share['high'])}."
        if number < share["labels_to_halve"]:
            why = f"{count(share['labels_to_halve'])} would halve the interval by labels."
    elif labels and labels["labelled"]:
        why = (
            f"{plural(labels['labelled'], 'image')} labelled so far; {count(labels['needed'])} drawn ones tell a share."
        )
    return _step(f"Label {plural(number, 'image')}.", why, None, f"gradosr label {uri} --next {number} --out to-label/")


def _take(document: Document) -> dict[str, str | None] | None:
    flags = document["flags"]
    if not flags["count"]:
        return None
    return _step(
        f"Take the {plural(flags['count'], 'flagged image')}.",
        f"They are in flagged.csv; on average at most {percent(flags['level'])} of them are known after all.",
        "#flags",
    )
