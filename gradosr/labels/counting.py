"""Counts of a run's labels: what is labelled, what is handed out, where people disagree, and what to do next."""

from collections import Counter
from typing import Any

from gradosr.audit.text import shortened
from gradosr.labels.estimates import figures
from gradosr.labels.merging import read_labels
from gradosr.labels.records import handed_out, read_rounds
from gradosr.labels.verdicts import conflicts, verdicts
from gradosr.results.folder import RunFolder
from gradosr.store import Store

MOST_CONFLICTS = 10
ENOUGH = 10
"""Number of labels, some of them unknown, with which a detector can begin to learn."""


def count(store: Store, run_uri: str) -> dict[str, Any]:
    """Return the facts of a run's labels. Raises InputError if there is no run."""
    classes = RunFolder(store, run_uri).about()["classes"]
    labels, rounds = read_labels(store, run_uri), read_rounds(store, run_uri)
    settled, disputed = verdicts(labels, classes), conflicts(labels, classes)
    seen = set(labels["key"].to_pylist())
    handed = [image.key for image in handed_out(rounds)]
    return {
        "labelled": settled.num_rows,
        "unknown": sum(settled["unknown"].to_pylist()),
        "by_label": dict(Counter(settled["label"].to_pylist()).most_common()),
        "people": sorted(set(labels["who"].to_pylist())),
        "rounds": len(rounds),
        "handed_out": len(handed),
        "waiting": sum(1 for key in handed if key not in seen),
        "conflicts": len(disputed),
        "first_conflicts": disputed[:MOST_CONFLICTS],
        **figures(rounds, settled),
    }


def told(facts: dict[str, Any], run_uri: str) -> list[str]:
    """Return the facts as lines for people."""
    lines = [f"{_images(facts['labelled'])} labelled, {facts['unknown']:,} of them unknown"]
    lines += [f"  {number:>7,}  {shortened(name)}" for name, number in facts["by_label"].items()]
    if facts["handed_out"]:
        lines.append(f"{_images(facts['handed_out'])} handed out, {facts['waiting']:,} of them without a label yet")
    for name, title in (("unknown_share", "share of unknown images"), ("precision", "precision over the threshold")):
        if found := facts[name]:
            interval = f"{found['low']:.1%} to {found['high']:.1%}"
            lines.append(f"{title}: {found['estimate']:.1%} ({interval}; by {found['labels']:,} labels)")
    if facts["conflicts"]:
        lines.append(f"{_images(facts['conflicts'])} on which people disagree, left out until they agree:")
    for one in facts["first_conflicts"]:
        said = ", ".join(f"{shortened(who, 40)}: {label}" for who, label in one["opinions"].items())
        lines.append(f"  {shortened(one['key'])} ({said})")
    return [*lines, next_step(facts, run_uri)]


def _images(number: int) -> str:
    return f"{number:,} image{'' if number == 1 else 's'}"


def next_step(facts: dict[str, Any], run_uri: str) -> str:
    """Return what to do next."""
    if facts["waiting"]:
        return f"next: label them, and `gradosr label {run_uri} --import FILE`"
    if facts["labelled"] < ENOUGH or not facts["unknown"]:
        return f"next: `gradosr label {run_uri} --next 50 --out FOLDER`"
    return f"next: `gradosr learn BUNDLE --run {run_uri}`, or more labels by --next"
