"""What is in an archive that the classifier has never seen, how much of it, where, since when, and since last time.

`audit` reads a results folder and nothing else: two passes over its parts, each in bounded memory.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gradosr.audit.drift import changes, check_baseline
from gradosr.audit.flagged import write_flagged
from gradosr.audit.flags import Flags, certified, no_flags
from gradosr.audit.groups import FalseAlarms, Groups, group
from gradosr.audit.histograms import p_value_histogram, score_histogram
from gradosr.audit.places import MOST_PREFIXES
from gradosr.audit.prevalence import Prevalence, no_prevalence, share_of_unknown
from gradosr.audit.proportions import wilson
from gradosr.audit.rows import RunTable, shown
from gradosr.audit.tally import Tally, count, worst
from gradosr.config import AuditSettings
from gradosr.errors import InputError
from gradosr.manifest import CalibrationSummary
from gradosr.store import Store

SCHEMA = 1
FLAGGED = "flagged.parquet"
MOST_RATES = 200
MOST_DAYS = 3660
MOST_QUARANTINED = 1000
UNCALIBRATED = (
    "the run does not record its calibration (it was scored before runs did so): "
    "fit the bundle again and score with it into a new output"
)


def audit(
    store: Store, uri: str, settings: AuditSettings, baseline: str | None = None, out: Path | None = None
) -> dict[str, Any]:
    """The document of audit.json; with `out`, a folder, flagged.parquet is written there.

    Raises InputError where there is nothing to audit, FingerprintMismatch for parts of mixed settings, ConfigError for
    a baseline of another bundle.
    """
    table = RunTable(store, uri)
    calibration = _calibration(table)
    compared = RunTable(store, baseline) if baseline else None
    notes = [] if table.listing.finished else ["the run is not finished: audited are the parts there are"]
    notes += check_baseline(table, compared) if compared else []
    tally = count(table, calibration.images if calibration else None, settings.group_sample)
    changed = None
    if compared:
        before = count(compared, None, 0)
        changed, more = changes(table, tally, compared, before)
        notes += more
    share, flagged = _figures(tally, settings)
    alarms = _false_alarms(table, tally, share)
    found = group(tally.sample, tally.without_features, alarms, settings.max_groups, table.kind)
    notes += _notes(tally, flagged, found, settings)
    if out is not None:
        write_flagged(table, flagged.cut if flagged.count else None, found.group_of, out / FLAGGED)
    return {
        "schema": SCHEMA,
        "gradosr": version("gradosr"),
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "results": _results(table),
        "notes": notes,
        **_counted(table, tally),
        "calibration": {"images": calibration.images} if calibration else None,
        "prevalence": asdict(share),
        "flags": {name: value for name, value in asdict(flagged).items() if name != "rank"},
        "histograms": {
            "unknown_score": score_histogram(tally.scores, calibration),
            "p_value": p_value_histogram(_exact(tally), tally.p_histogram),
        },
        **_rates(table, tally),
        "groups": _grouped(found),
        "highest": _highest(tally, flagged, table),
        "quarantined": _quarantined(table),
        "bad_images": tally.bad_images,
        "baseline": changed,
    }


def _calibration(table: RunTable) -> CalibrationSummary | None:
    recorded = table.about["calibration"]
    try:
        return None if recorded is None else CalibrationSummary.model_validate(recorded)
    except ValidationError as error:
        raise InputError(f"{table.folder.uri}: run.json is damaged: its calibration is not one") from error


def _exact(tally: Tally) -> Any:
    """Counts by p-value, if all are of the recorded calibration."""
    return None if tally.p_values is None or tally.p_values.strange else tally.p_values.counts


def _figures(tally: Tally, settings: AuditSettings) -> tuple[Prevalence, Flags]:
    counts_N = _exact(tally)
    if counts_N is None:
        reason = UNCALIBRATED
        if tally.p_values:
            reason = f"{tally.p_values.strange} p-values are not of the recorded calibration; score into a new output"
        return no_prevalence(reason, settings.confidence), no_flags(reason, settings.fdr)
    share = share_of_unknown(counts_N, settings.confidence)
    return share, certified(counts_N, settings.fdr, 1 - (share.estimate or 0.0))


def _false_alarms(table: RunTable, tally: Tally, share: Prevalence) -> FalseAlarms | None:
    counts_N, rate = _exact(tally), table.about["false_alarm_rate"]
    if counts_N is None or rate is None or not tally.images:
        return None
    return FalseAlarms.of(counts_N, 1 - (share.estimate or 0.0), rate)


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
    }


def _highest(tally: Tally, flagged: Flags, table: RunTable) -> Sequence[Mapping[str, Any]]:
    """Of the flagged rows, which are those of the smallest p-values and so of the highest scores."""
    rate = table.about["false_alarm_rate"]
    cut = flagged.cut if flagged.count else rate
    return [row for row in tally.highest if cut is None or row["p_value"] <= cut + 1e-7]


def _quarantined(table: RunTable) -> list[dict[str, Any]]:
    marks = (table.folder.mark(part) for part in sorted(table.listing.quarantined)[:MOST_QUARANTINED])
    return [{"shard": shown(mark.get("shard")), "reason": shown(mark.get("reason"))} for mark in marks]


def _notes(tally: Tally, flagged: Flags, found: Groups, settings: AuditSettings) -> list[str]:
    """What was left out or bounded."""
    notes = []
    if not flagged.count and tally.unknown:
        notes.append(
            f"no image can be flagged at the level asked for: {FLAGGED} and `highest` hold images over the bundle's "
            "threshold instead, false alarms among them"
        )
    for name, number in (("folders", len(tally.prefixes.counts())), ("shards", len(tally.by_shard))):
        if number > MOST_RATES:
            notes.append(f"of {number} {name} the {MOST_RATES} of the surely highest rates are listed")
    if tally.prefixes.depth is not None:
        steps = f"more than {MOST_PREFIXES} folders: told apart by their first {tally.prefixes.depth} steps"
        notes.append(steps)
    days = tally.days.counts()
    if days and tally.days.undated:
        notes.append(f"{tally.days.undated} of {tally.images} images carry no date in their keys")
    if len(days) > MOST_DAYS:
        notes.append(f"of {len(days)} days the last {MOST_DAYS} are listed")
    if tally.sample.considered > found.considered > 0:
        notes.append(
            f"groups are of a sample, chosen by hash of the key: {found.considered} of {tally.sample.considered} "
            "images over the threshold"
        )
    groups = len(set(found.group_of.values()))
    if groups > settings.max_groups:
        notes.append(f"of {groups} groups the {settings.max_groups} largest are listed")
    return notes
