"""Audits: how much of an archive the classifier has never seen, where it lies, since when, and what has changed.

`audit` reads a results folder and nothing else, in two passes over its parts, each in bounded memory.
"""

import json
from collections.abc import Collection
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import TypeAdapter, ValidationError

from gradosr.audit import export, pictures, report
from gradosr.audit.by_labels import by_labels
from gradosr.audit.document import FLAGGED, OVER, Found, document
from gradosr.audit.drift import changes, check_baseline
from gradosr.audit.explaining import Explaining
from gradosr.audit.flagged import check_folder, write_flagged
from gradosr.audit.flags import Flags, certified, no_flags
from gradosr.audit.groups import FalseAlarms, group
from gradosr.audit.prevalence import Prevalence, no_prevalence, share_of_unknown
from gradosr.audit.rows import RunTable
from gradosr.audit.tally import Tally, count
from gradosr.bundle.manifest import CalibrationSummary
from gradosr.config import AuditSettings, Input
from gradosr.errors import InputError
from gradosr.store import Store

MOST_PICTURED = 500
"""Number of flagged images that are exported with a picture, in addition to those shown on the page."""
_INPUT: TypeAdapter[Input] = TypeAdapter(Input)
UNCALIBRATED = (
    "the run does not record its calibration (it was scored before runs did so): "
    "fit the bundle again and score with it into a new output"
)


def audit(
    store: Store,
    uri: str,
    settings: AuditSettings,
    baseline: str | None = None,
    out: Path | None = None,
    only: Collection[str] | None = None,
    verdicts: pa.Table | None = None,
) -> dict[str, Any]:
    """Audit a run and return the document of audit.json.

    `verdicts` are what people said of its images, as gradosr.labels has them. Images that the bundle has learned from
    are left out.

    If `out` (a folder) is given, write the document there together with the page and the lists of images. If `only` is
    given, audit just the parts with these names instead of the whole table of the run. Raises InputError if there is
    nothing to audit, FingerprintMismatch if parts were scored with different settings, ConfigError if the baseline was
    scored with another bundle, and StoreError if `out` cannot be written.
    """
    table = RunTable(store, uri, only, with_learned=False)
    compared = RunTable(store, baseline, with_learned=False) if baseline else None
    notes = [] if table.listing.finished else ["the run is not finished: audited are the parts there are"]
    notes += check_baseline(table, compared) if compared else []
    if out is not None:
        check_folder(out)
    found, changed = _found(table, settings, verdicts), None
    if compared:
        changed, more = changes(table, found.tally, compared, count(compared, None, 0))
        notes += more
    facts = document(found, changed, notes)
    if out is not None:
        _write(store, table, settings, found, facts, out)
    return facts


def _write(
    store: Store, table: RunTable, settings: AuditSettings, found: Found, facts: dict[str, Any], out: Path
) -> None:
    """Write the document, the list of images, exports and the page; add notes on what is missing to the document."""
    listed = out / facts["list"]
    _forget({FLAGGED, OVER} - {listed.name}, out)
    write_flagged(table, found.flags.cut if found.flags.count else None, found.groups.group_of, listed)
    explaining, why_not = Explaining.of(store, table, settings, pictures.rows_of(facts))
    rows = chain(pictures.rows_of(facts), export.flagged_rows(listed, MOST_PICTURED))
    source = _INPUT.validate_python(table.fingerprint["input"])
    shown = pictures.fetch(store, source, rows, table.parts, see=explaining.see if explaining else None)
    if explaining:
        facts["explained"], why_not = explaining.facts()
    facts["notes"] += why_not
    facts["notes"] += [f"{number} pictures missing: {pictures.REASONS[kind]}" for kind, number in shown.missing.items()]
    store.write(str(out / "audit.json"), json.dumps(facts, indent=1).encode())
    export.write(listed, shown, facts["classes"])
    report.write(facts, shown, out)


def _forget(lists: Collection[str], out: Path) -> None:
    """Remove lists that an earlier audit left in a folder, and that this one does not write."""
    for name in lists:
        for path in (out / name, (out / name).with_suffix(".csv")):
            path.unlink(missing_ok=True)


def _found(table: RunTable, settings: AuditSettings, verdicts: pa.Table | None) -> Found:
    calibration = _calibration(table)
    sought = [] if verdicts is None else verdicts["key"].to_pylist()
    tally = count(table, calibration.images if calibration else None, settings.group_sample, sought)
    counts_N = None if tally.p_values is None or tally.p_values.strange else tally.p_values.counts
    share, flags = _figures(tally, settings)
    known, rate, alarms = 1 - (share.estimate or 0.0), table.about["false_alarm_rate"], None
    if counts_N is not None and rate is not None and tally.images:
        alarms = FalseAlarms.of(counts_N, known, rate)
    groups = group(tally.sample, tally.without_features, alarms, settings.max_groups, table.kind)
    labels = by_labels(verdicts, tally.over) if sought else None
    return Found(table, tally, calibration, counts_N, share, flags, groups, settings.max_groups, labels)


def _calibration(table: RunTable) -> CalibrationSummary | None:
    recorded = table.about["calibration"]
    try:
        return None if recorded is None else CalibrationSummary.model_validate(recorded)
    except ValidationError as error:
        raise InputError(f"{table.folder.uri}: run.json is damaged: its calibration is not one") from error


def _figures(tally: Tally, settings: AuditSettings) -> tuple[Prevalence, Flags]:
    """Compute the prevalence and the flags; without exactly countable p-values, return both empty with the reason."""
    if tally.p_values is None or tally.p_values.strange:
        reason = UNCALIBRATED
        if tally.p_values:
            reason = f"{tally.p_values.strange} p-values are not of the recorded calibration; score into a new output"
        return no_prevalence(reason, settings.confidence), no_flags(reason, settings.fdr)
    share = share_of_unknown(tally.p_values.counts, settings.confidence)
    return share, certified(tally.p_values.counts, settings.fdr)
