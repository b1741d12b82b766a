"""The document of audit.json: the counts and findings in order, with bounded lists, and notes on what was cut."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from typing import Any

from gradosr.audit.clusters import Groups
from gradosr.audit.flags import Flags
from gradosr.audit.histograms import p_value_histogram, score_histogram
from gradosr.audit.p_values import PValues
from gradosr.audit.places import MOST_PREFIXES
from gradosr.audit.prevalence import Prevalence
from gradosr.audit.proportions import wilson
from gradosr.audit.rows import RunTable, shown
from gradosr.audit.tally import Tally, worst
from gradosr.bundle.manifest import CalibrationSummary

SCHEMA = 1
FLAGGED, OVER = "flagged.parquet", "over_threshold.parquet"
MOST_RATES = 200
MOST_DAYS = 3660
MOST_QUARANTINED = 1000


@dataclass(frozen=True)
class Found:
    """Everything that an audit found in one run."""

    table: RunTable
    tally: Tally
    calibration: CalibrationSummary | None
    p_values: PValues | None
    """The images by p-value; None if the p-values do not belong to the recorded calibration."""
    share: Prevalence
    flags: Flags
    groups: Groups
    max_groups: int
    labels: Mapping[str, Any] | None = None
    """Figures by labels (by_labels.py); None if nobody has labelled anything."""


def document(found: Found, changed: Mapping[str, Any] | None, notes: Sequence[str]) -> dict[str, Any]:
    """Return the document as plain data, with `changed` as its baseline section and `notes` first among its notes."""
    tally, table = found.tally, found.table
    return {
        "schema": SCHEMA,
        "gradosr": version("gradosr"),
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "results": _results(table),
        "notes": [*notes, *_left_out(found)],
        **_counted(table, tally),
        "calibration": found.calibration and {"images": found.calibration.images, "kind": found.calibration.kind},
        "prevalence": asdict(found.share),
        "labels": found.labels,
        "flags": {name: value for name, value in asdict(found.flags).items() if name != "cut"},
        "histograms": {
            "unknown_score": score_histogram(tally.scores, found.calibration),
            "p_value": p_value_histogram(found.p_values, tally.p_histogram),
        },
        **_rates(table, tally),
        "groups": _grouped(found.groups),
        "list": FLAGGED if found.flags.count else OVER,
        # Both the flagged rows and those over the threshold are the rows with the lowest p-values.
        "highest": tally.highest[: found.flags.count or tally.unknown],
        "quarantined": _quarantined(table),
        "bad_images": tally.bad_images,
        "baseline": changed,
    }


def _results(table: RunTable) -> dict[str, Any]:
    fingerprint = table.fingerprint
    return {
        "uri": table.folder.uri,
        "finished": table.listing.finished,
        "parts": len(table.parts),
        "input": fingerprint["input"],
        "bundle": fingerprint["bundle"],
        "fingerprint": fingerprint,
    }


def _counted(table: RunTable, tally: Tally) -> dict[str, Any]:
    return {
        "rows": tally.rows,
        "images": tally.images,
        "statuses": dict(sorted(tally.statuses.items())),
        "classes": list(table.about["classes"]),
        "false_alarm_rate": table.about["false_alarm_rate"],
        "unknown": tally.unknown,
        "unknown_rate": tally.unknown / max(1, tally.images),
    }


def _rates(table: RunTable, tally: Tally) -> dict[str, Any]:
    counts = tally.by_class.tolist()
    by_class = [(name, one, two) for name, (one, two) in zip(table.about["classes"], counts, strict=True)]
    by_shard = [(name, one, two) for name, (one, two) in tally.by_shard.items()]
    return {
        "by_prefix": [_rate(*one) for one in worst(tally.prefixes.counts(), MOST_RATES)],
        "by_predicted_class": [_rate(*one) for one in worst(by_class, MOST_RATES)],
        "by_shard": [_rate(*one) for one in worst(by_shard, MOST_RATES)],
        "by_day": [_rate(*one) for one in tally.days.counts()[-MOST_DAYS:]],
        "dates": {"keys": tally.days.from_keys, "shards": tally.days.from_shards, "none": tally.days.undated},
    }


def _rate(name: str, images: int, unknown: int) -> dict[str, Any]:
    low, high = wilson(unknown, images)
    return {
        "name": name,
        "images": images,
        "unknown": unknown,
        "rate": unknown / max(1, images),
        "low": low,
        "high": high,
    }


def _grouped(found: Groups) -> dict[str, Any]:
    return {
        "reason": found.reason,
        "considered": found.considered,
        "clustered": len(found.group_of),
        "left_over": found.left_over,
        "items": list(found.items),
        "look_alikes": list(found.look_alikes),
        "method": found.method,
    }


def _quarantined(table: RunTable) -> list[dict[str, Any]]:
    marks = (table.folder.mark(part) for part in sorted(table.listing.quarantined)[:MOST_QUARANTINED])
    return [{"shard": shown(mark.get("shard")), "reason": shown(mark.get("reason"))} for mark in marks]


def _left_out(found: Found) -> list[str]:
    """Return one note for each list or sample that was cut short."""
    tally = found.tally
    notes = []
    if tally.left_out:
        left_out = "1 image" if tally.left_out == 1 else f"{tally.left_out:,} images"
        notes.append(
            f"{left_out} that the bundle has learned from are left out of all figures and lists: their scores are not "
            "those of fresh images"
        )
    for name, number in (("folders", len(tally.prefixes.counts())), ("shards", len(tally.by_shard))):
        if number > MOST_RATES:
            notes.append(f"of {number} {name} the {MOST_RATES} of the surely highest rates are listed")
    if tally.prefixes.depth is not None:
        steps = f"more than {MOST_PREFIXES} folders: told apart by their first {tally.prefixes.depth} steps"
        notes.append(steps)
    days = tally.days.counts()
    if days and tally.days.undated:
        of_images = f"{tally.days.undated} of {tally.images} images"
        notes.append(f"{of_images} have no day: their keys hold no date, and no time is on record of their shard")
    if len(days) > MOST_DAYS:
        notes.append(f"of {len(days)} days the last {MOST_DAYS} are listed")
    return notes + _of_groups(found)


def _of_groups(found: Found) -> list[str]:
    """Return the notes on the clusters."""
    notes: list[str] = []
    sampled = found.groups.considered + found.groups.not_embedded
    if found.groups.not_embedded:
        notes.append(
            f"{found.groups.not_embedded} of {sampled} images over the threshold have no embedding and are in no group"
        )
    if found.tally.sample.considered > sampled > 0:
        notes.append(
            f"groups are of a sample, chosen by hash of the key: {sampled} of "
            f"{found.tally.sample.considered} images over the threshold"
        )
    groups = len(set(found.groups.group_of.values()))
    if groups > found.max_groups:
        notes.append(f"of {groups} groups the {found.max_groups} largest are listed")
    return notes
