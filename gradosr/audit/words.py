"""Sentences for the content of an audit.json. Figures are quoted unchanged; a missing one is replaced by its reason."""

from collections.abc import Mapping
from typing import Any

from gradosr.audit.proportions import CONFIDENCE
from gradosr.audit.text import count, interval, percent, plural

Document = Mapping[str, Any]
_FLOOR = 0.0005  # a lower end below this share counts as zero


def headline(document: Document) -> str:
    """Return the sentence with which the page begins."""
    prevalence, images = document["prevalence"], document["images"]
    if not images:
        return "No image of this archive has a score, so nothing can be said about it."
    if prevalence["estimate"] is None:
        return "How much of this archive is unknown to the classifier cannot be said."
    if prevalence["low"] < _FLOOR:
        return f"At most {percent(prevalence['high'])} of this archive is unknown to the classifier; it may be none."
    return f"About {percent(prevalence['estimate'])} of this archive is unknown to the classifier."


def certainty(document: Document) -> list[str]:
    """Return sentences on the confidence interval and the lower bound, or on why there is no figure."""
    prevalence, images = document["prevalence"], document["images"]
    lines = []
    if prevalence["estimate"] is not None:
        low, high, level = prevalence["low"], prevalence["high"], percent(prevalence["confidence"])
        lines.append(
            f"The {level} interval is {interval(low, high)}: {count(low * images)} to {count(high * images)} "
            f"of the {plural(images, 'image')} with a score."
        )
    elif images:
        lines.append(_sentence(prevalence["reason"] or "no estimate"))
    if prevalence["estimate"] is not None and prevalence["reason"]:
        lines.append(_sentence(prevalence["reason"]))
    if prevalence["lower_bound"] is not None:
        bound, level = prevalence["lower_bound"], percent(prevalence["confidence"])
        lines.append(
            f"At least {percent(bound)} is unknown ({level} confidence, one-sided)."
            if bound >= _FLOOR
            else f"That any of it is unknown cannot be shown with {level} confidence: the one-sided lower bound is "
            f"{percent(bound)}."
        )
    return lines


def by_labels(document: Document) -> list[str]:
    """Return sentences on what the labels of drawn images say, whatever the images look like."""
    found = document["labels"]
    if found is None:
        return []
    if found["unknown_share"] is None:
        return [
            f"{plural(found['labelled'], 'image')} labelled, {count(found['drawn'])} of them drawn at random: from "
            f"{count(found['needed'])} on, they tell the share of unknown images without any assumption."
        ]
    return [
        f"By {plural(one['labels'], 'label')} of drawn images, {percent(one['estimate'])} of {what} are unknown: the "
        f"{percent(CONFIDENCE)} interval is {interval(one['low'], one['high'])}, whatever they look like"
        f"{_to_halve(one['labels_to_halve'])}."
        for name, what in (("unknown_share", "all images"), ("precision", "the images over the threshold"))
        if (one := found[name])
    ]


def _to_halve(more: int) -> str:
    return f"; {plural(more, 'more label', 'more labels')} of drawn images would halve it" if more else ""


def called_unknown(document: Document) -> str:
    """Return the second half of a sentence on the number of images over the threshold."""
    rate, images = document["false_alarm_rate"], document["images"]
    if rate is None:
        return "over the bundle's threshold. It has no rate of false alarms, so how many are known cannot be said."
    return (
        f"over the threshold. It is set so that {percent(rate)} of known images pass it: "
        f"{count(rate * images)} would, if every image were known."
    )


def flags(document: Document) -> str:
    """Return sentences on the flagged images and their false discovery rate."""
    facts = document["flags"]
    level = percent(facts["level"])
    if facts["count"]:
        return (
            f"{plural(facts['count'], 'image')} {'is' if facts['count'] == 1 else 'are'} flagged so that on average at "
            f"most {level} of the flagged, here {count_small(facts['expected_false'])}, are false alarms: known after "
            "all (Benjamini-Hochberg on the p-values)."
        )
    lines = [f"No image can be flagged so that at most {level} of the flagged are false alarms."]
    if facts["reason"]:
        lines.append(_sentence(facts["reason"]))
    return " ".join(lines)


def count_small(number: float | None) -> str:
    """Format an expected number, such as "about 21" or "fewer than 1"."""
    return "an unknown number" if number is None else "fewer than 1" if number < 1 else f"about {count(number)}"


def highest_title(document: Document) -> str:
    """Return the title of the list of images."""
    total = document["flags"]["count"]
    shown = len(document["highest"])
    if total:
        return (
            f"{count(shown)} of {plural(total, 'flagged image')}" if shown < total else plural(total, "flagged image")
        )
    return f"The {plural(shown, 'image')} with the highest unknown score, none of them certified"


def groups(document: Document) -> str:
    """Return sentences on how the candidate classes were found, or why there are none."""
    facts = document["groups"]
    if facts["reason"]:
        return _sentence(facts["reason"])
    found = len(facts["items"])
    considered = f"Of {plural(facts['considered'], 'image')} over the threshold, {count(facts['clustered'])}"
    if not found:
        return f"{considered} were compared by their features; no group stands out."
    return (
        f"{considered} were compared by their features and {count(facts['left_over'])} fit into no group. Each group "
        "may be a class worth adding, a fault of the archive, or known images that look odd: the pictures decide."
    )


def days(document: Document) -> str:
    """Return a sentence on where the days come from: the images' keys, or the shards' last modification."""
    keys, shards = document["dates"]["keys"], document["dates"]["shards"]
    if not shards:
        return "By the first date in each key."
    modified = "by the day (UTC) on which their shard was last modified"
    if not keys:
        return f"The keys carry no dates: images count {modified}."
    without = f"{plural(shards, 'image')} without one count {modified}"
    return f"By the first date in the key, of {plural(keys, 'image')}; {without}."


def unknown_rate_change(baseline: Mapping[str, Any], now: float) -> str:
    """Return a sentence on the change since the baseline, and whether it is more than chance explains."""
    change = baseline["unknown_rate_change"]
    before = baseline["unknown_rate"]
    chance = change["adjusted_p_value"]
    if chance is not None and chance >= 0.05:
        return (
            f"The share over the threshold was {percent(before)} and is {percent(now)}: no more than chance explains."
        )
    verb = "rose" if change["difference"] > 0 else "fell"
    return f"The share over the threshold {verb} from {percent(before)} to {percent(now)}."


def _sentence(text: str) -> str:
    """Return a reason as a full sentence."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")
