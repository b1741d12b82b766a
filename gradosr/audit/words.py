"""Sentences for the content of an audit.json. Figures are quoted unchanged; a missing one is replaced by its reason."""

from collections.abc import Mapping, Sequence
from typing import Any

from gradosr.audit.proportions import CONFIDENCE
from gradosr.audit.text import count, interval, percent, plural, shortened

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
        return (
            f"This archive scores like known images: at most {percent(prevalence['high'])} of it is unknown to the "
            "classifier, unless that scores like known images, too."
        )
    return f"About {percent(prevalence['estimate'])} of this archive is unknown to the classifier."


def certainty(document: Document) -> list[str]:
    """Return sentences on the confidence interval, or on why there is no figure."""
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
    return lines


def lower_bound(document: Document) -> str:
    """Return a sentence on the one-sided lower bound, for the section on the method."""
    bound, level = document["prevalence"]["lower_bound"], percent(document["prevalence"]["confidence"])
    if bound is None:
        return "none"
    if bound < _FLOOR:
        return f"that any image is unknown cannot be shown with {level} confidence"
    return (
        f"at least {percent(bound)} with {level} confidence, whatever the unknown images look like; it is one-sided, "
        "so it lies above the low end of the interval"
    )


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
        f"By {plural(one['labels'], 'label')} of drawn images, {percent(one['estimate'])} of {what} are unknown "
        f"({percent(CONFIDENCE)} interval {interval(one['low'], one['high'])}), whatever they look like"
        f"{_to_halve(one['labels_to_halve'])}."
        for name, what in (("unknown_share", "all images"), ("precision", "the images over the threshold"))
        if (one := found[name])
    ]


def _to_halve(more: int) -> str:
    return f"; {count(more)} more would halve the interval" if more else ""


def without_score(document: Document) -> str:
    """Return the second half of a sentence on the images with a score: how many have none."""
    bad, shards = document["rows"] - document["images"], len(document["quarantined"])
    if not bad and not shards:
        return "in all; none is without."
    lost = f"; {plural(shards, 'shard')} could not be read" if shards else ""
    return f"of {count(document['rows'])}: {count(bad)} could not be decoded{lost}."


def over_the_threshold(document: Document) -> str:
    """Return the second half of a sentence on the number of images over the threshold."""
    rate, images = document["false_alarm_rate"], document["images"]
    share = f"({percent(document['unknown_rate'])})" if images else ""
    if rate is None:
        return f"{share} score above the bundle's threshold, whose rate of false alarms is not on record."
    return f"{share}. The threshold lets {percent(rate)} of known images pass: {count(rate * images)}, were all known."


def flagged(document: Document) -> str:
    """Return the second half of a sentence on the number of flagged images."""
    facts = document["flags"]
    if facts["count"]:
        return f"of them are certified: on average at most {percent(facts['level'])} of these are known after all."
    return f"of them can be certified so that at most {percent(facts['level'])} of the list are known after all."


def flags(document: Document) -> str:
    """Return sentences on the flagged images and their false discovery rate."""
    facts = document["flags"]
    level = percent(facts["level"])
    if facts["count"]:
        return (
            f"{plural(facts['count'], 'image')} {'is' if facts['count'] == 1 else 'are'} flagged: on average at most "
            f"{level} of them, here {count_small(facts['expected_false'])}, are known after all."
        )
    why = f": {facts['reason']}" if facts["reason"] else ""
    return f"No image can be flagged so that at most {level} of the flagged are known after all{why}."


def listed(document: Document, rows: int) -> str:
    """Return a sentence on which images the table has, and where the whole list is."""
    file = document.get("list", "flagged.parquet")
    return (
        f"The table has the {plural(rows, 'image')} shown on this page. All that are "
        f"{'flagged' if document['flags']['count'] else 'over the threshold'} are in {file} and "
        f"{file.replace('.parquet', '.csv')} beside it."
    )


def count_small(number: float | None) -> str:
    """Format an expected number, such as "about 21" or "fewer than 1"."""
    return "an unknown number" if number is None else "fewer than 1" if number < 1 else f"about {count(number)}"


def highest_title(document: Document) -> str:
    """Return the title of the list of images."""
    total = document["flags"]["count"]
    return f"Images, of {plural(total, 'flagged image')}" if total else f"Images with the {most_unknown(document)}"


def most_unknown(document: Document) -> str:
    """Return what the images have that are listed first."""
    return (
        "lowest p-values"
        if (document.get("calibration") or {}).get("kind") == "per_class"
        else "highest unknown scores"
    )


def clusters_found(document: Document) -> str:
    """Return the second half of a sentence on the number of clusters."""
    found = document["groups"]
    if found["reason"]:
        return "among the images over the threshold."
    return f"of images that look alike; {count(found['clustered'])} of the images over the threshold are in one."


def groups(document: Document) -> str:
    """Return sentences on how the clusters were found, or why there are none."""
    facts = document["groups"]
    if facts["reason"]:
        return _sentence(facts["reason"])
    compared, over = facts["considered"], document["unknown"]
    whom = f"All {plural(over, 'image')}" if compared >= over else f"{count(compared)} of {plural(over, 'image')}"
    considered = f"{whom} over the threshold were compared with each other"
    if not facts["items"]:
        return f"{considered}; none of them look alike."
    alike = sum(one["images"] for one in facts.get("look_alikes") or ())
    known = f"{count(alike)} look like a known class, " if alike else ""
    return (
        f"{considered}: {count(facts['clustered'])} look alike in clusters, {known}"
        f"{count(facts['left_over'] - alike)} are like no other. {compared_by(document)}A cluster may be a class worth "
        "adding, a fault of the archive, or known images that look odd."
    )


def compared_by(document: Document) -> str:
    """Return a sentence on the vectors that images were compared by; empty if they are the classifier's features."""
    space = (document["groups"].get("method") or {"space": "features"})["space"]
    if space == "embeddings":
        return "They were compared by your own embeddings. "
    if space == "features":
        return ""
    network = shortened(document["results"]["fingerprint"]["embedder"]["arch"], 60)
    return f"They were compared by the embeddings of {network}. "


def cluster_title(group: Mapping[str, Any]) -> str:
    """Return the title of a cluster."""
    return f"{plural(group['size'], 'image')}, most like {shortened(group['nearest_class'], 40)}"


def cluster(group: Mapping[str, Any], document: Document) -> str:
    """Return sentences on a cluster: its share, its false alarms, its labels, and when it came."""
    lines = []
    if alike := group.get("look_alike"):
        lines.append(f"Looks like {shortened(alike, 40)}: probably known.")
    if document["unknown"]:
        lines.append(f"{percent(group['size'] / document['unknown'])} of what is over the threshold.")
    if group["false_alarm_share"] is not None:
        expected, share = count_small(group["expected_false_alarms"]), percent(group["false_alarm_share"])
        lines.append(f"{_begun(expected)} of them ({share}) would be there by false alarm alone.")
    if names := group.get("labels"):
        total = group.get("labelled") or sum(one["images"] for one in names)
        told = ", ".join(f"{shortened(one['name'], 30)} {percent(one['images'] / max(1, total))}" for one in names[:3])
        lines.append(f"Labels in the archive: {told}.")
    if days := group.get("days"):
        first, last = days["first"], days["last"]
        lines.append(f"Dated {first}." if first == last else f"Dated {first} to {last}.")
    return " ".join(lines)


def look_alikes(found: Sequence[Mapping[str, Any]]) -> str:
    """Return how many images over the threshold are more like a known class than like each other."""
    images = sum(one["images"] for one in found)
    return f"{plural(images, 'image')} over the threshold that look like a known class"


def look_alike(one: Mapping[str, Any]) -> str:
    """Return how many of the images that look like one known class are expected to be of it."""
    if one["false_alarm_share"] is None:
        return "Probably known."
    return f"{_begun(count_small(one['expected_false_alarms']))} of them are expected to be false alarms."


def atlas(document: Document) -> str:
    """Return a sentence on the map of the images over the threshold."""
    shown, over = len(document["map"]["ids"]), document["unknown"]
    which = f"All {plural(over, 'image')}" if shown >= over else f"{count(shown)} of {plural(over, 'image')}"
    return f"{which} over the threshold: neighbours look alike; how far apart distant clusters are means little."


def scores(document: Document) -> str:
    """Return what the histograms of the scores are, in a line."""
    return "how the scores of this archive differ from those of known images"


def where(document: Document) -> str:
    """Return the folder, class or shard of the surely highest share, in a line."""
    for name, what in (("by_prefix", "folder"), ("by_predicted_class", "predicted class")):
        rates = document[name]
        if len(rates) > 1:
            top = rates[0]
            return f"highest in the {what} {shortened(top['name'], 40)}: {percent(top['rate'])} over the threshold"
    return "by folder, shard, predicted class and day"


def bad(document: Document) -> str:
    """Return how many images have no score, in a line."""
    images, shards = document["rows"] - document["images"], len(document["quarantined"])
    if not images and not shards:
        return "nothing"
    return f"{plural(images, 'bad image')}, {plural(shards, 'quarantined shard')}"


def method(document: Document) -> str:
    """Return what the section on the method is about, in a line."""
    return "how the figures are made, and from which run"


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


def _begun(text: str) -> str:
    return text[:1].upper() + text[1:]


def _sentence(text: str) -> str:
    """Return a reason as a full sentence."""
    text = text.strip()
    return _begun(text) + ("" if text.endswith((".", "!", "?")) else ".")
