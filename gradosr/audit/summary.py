"""A summary of an audit in a few lines, for a terminal."""

from collections.abc import Mapping
from typing import Any

from gradosr.text import plural, printable


def summary(document: Mapping[str, Any]) -> str:
    """Summarise how much is unknown, what can be flagged, which clusters there are, and what changed."""
    bad, parts = document["rows"] - document["images"], document["results"]["parts"]
    lines = [
        f"images          {document['images']:,} scored, {bad:,} without a score, in {plural(parts, 'part')}",
        f"over threshold  {document['unknown']:,} ({document['unknown_rate']:.1%})" + _expected(document),
        f"unknown         {_prevalence(document['prevalence'])}",
        *_by_labels(document["labels"]),
        f"flagged         {_flags(document['flags'])}",
        f"clusters        {_groups(document['groups'])}",
    ]
    if document["baseline"]:
        lines.append(f"since baseline  {_baseline(document['baseline'])}")
    return "\n".join(printable(line) for line in lines)


def _expected(document: Mapping[str, Any]) -> str:
    rate = document["false_alarm_rate"]
    return "" if rate is None else f"; of known images alone {rate:.1%} would be"


def _prevalence(found: Mapping[str, Any]) -> str:
    if found["reason"]:
        return f"no figure: {found['reason']}"
    return (
        f"{found['estimate']:.1%} of the images ({found['low']:.1%} to {found['high']:.1%}, {found['confidence']:.0%} "
        "confidence)"
    )


def _by_labels(found: Mapping[str, Any] | None) -> list[str]:
    shares = () if found is None else (("by labels", found["unknown_share"]), ("precision", found["precision"]))
    return [
        f"{name:<16}{one['estimate']:.1%} ({one['low']:.1%} to {one['high']:.1%}) by {one['labels']:,} labels; "
        f"{one['labels_to_halve']:,} more of drawn images would halve the interval"
        for name, one in shares
        if one
    ]


def _flags(found: Mapping[str, Any]) -> str:
    if found["reason"]:
        return found["reason"] if not found["calibration_images"] else f"none: {found['reason']}"
    return f"{found['count']:,} images, of which on average at most {found['level']:.0%} are known after all"


def _groups(found: Mapping[str, Any]) -> str:
    if found["reason"]:
        return f"none: {found['reason']}"
    return f"{len(found['items'])}, with {found['clustered']:,} images; {found['left_over']:,} are in none"


def _baseline(found: Mapping[str, Any]) -> str:
    change = found["unknown_rate_change"]
    return (
        f"{change['difference']:+.1%} over threshold ({change['low']:+.1%} to {change['high']:+.1%}, "
        f"adjusted p {change['adjusted_p_value']:.2g}), {found['appeared']:,} images appeared, "
        f"{found['vanished']:,} vanished"
    )
