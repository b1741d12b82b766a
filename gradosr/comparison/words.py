"""Sentences and rows of figures for the content of a comparison."""

from collections.abc import Mapping
from typing import Any

from gradosr.audit.text import count, interval, percent, plural, points
from gradosr.text import printable

FIGURES = (
    ("auroc", "AUROC"),
    ("found", "Unknown images found"),
    ("false_alarms", "Known images over the threshold"),
)
"""Figures on labelled images, with their titles."""
LEAST_P = 0.0001
"""Smallest p-value that is told as a number."""


def headline(document: Mapping[str, Any]) -> str:
    """Return the sentence with which the page begins."""
    table = document["table"]
    up, down = table["known"]["unknown"], table["unknown"]["known"]
    if not up + down:
        return "No image changes sides."
    verb = "changes" if up + down == 1 else "change"
    return f"{plural(up + down, 'image')} of {count(document['images'])} {verb} sides."


def moved(document: Mapping[str, Any]) -> str:
    """Return the sentence on both directions."""
    table, rest = document["table"], document["rows"] - document["images"]
    told = (
        f"Under the threshold before and over it after: {plural(table['known']['unknown'], 'image')}; "
        f"the other way round: {count(table['unknown']['known'])}."
    )
    return told + (f" Left out for want of a score: {plural(rest, 'row')}." if rest else "")


def rates(document: Mapping[str, Any]) -> str:
    """Return the false-alarm rates of the bundles, which set the thresholds."""
    before, after = (document[name]["false_alarm_rate"] for name in ("before", "after"))
    return percent(before) if before == after else f"{percent(before)} and {percent(after)}"


def rows(figures: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return title, before, after and difference of each figure that there is."""
    found = []
    for name, title in FIGURES:
        if (one := figures[name]) is not None:
            write = _area if name == "auroc" else percent
            before, after = (f"{write(one[run]['estimate'])} ({_ends(write, one[run])})" for run in ("before", "after"))
            found.append((title, before, after, _difference(one["difference"], area=name == "auroc")))
    return found


def too_few(figures: Mapping[str, Any]) -> str:
    """Return why there is no AUROC; "" if there is one."""
    if figures["auroc"] is not None:
        return ""
    return (
        f"No AUROC: it takes two known and two unknown images that no detector learned from, and there are "
        f"{figures['known']} and {figures['unknown']}."
    )


def summary(document: Mapping[str, Any]) -> str:
    """Return a summary in a few lines, for a terminal."""
    labelled, learned = document["labelled"], document["learned"]["images"]
    lines = [f"{headline(document)} {moved(document)}"]
    lines.append(
        f"labelled images: {labelled['known']:,} known, {labelled['unknown']:,} unknown"
        + (f"; {learned:,} more that a detector learned from are left out" if learned else "")
    )
    lines += [f"  {title}: {before} -> {after}; {change}" for title, before, after, change in rows(labelled)]
    if why := too_few(labelled):
        lines.append(f"  {why}")
    return "\n".join(printable(line) for line in lines)


def _area(value: float) -> str:
    return f"{value:.3f}"


def _ends(write: Any, one: Mapping[str, float]) -> str:
    if write is percent:
        return interval(one["low"], one["high"])
    return f"{write(one['low'])} to {write(one['high'])}"


def _difference(one: Mapping[str, float], *, area: bool) -> str:
    if not area:
        return f"{points(one['estimate'])} ({points(one['low'])} to {points(one['high'])})"
    likely = f"p {one['p_value']:.2g}" if one["p_value"] >= LEAST_P else f"p < {LEAST_P}"
    return f"{one['estimate']:+.3f} ({one['low']:+.3f} to {one['high']:+.3f}), {likely}".replace("-", "\u2212")
