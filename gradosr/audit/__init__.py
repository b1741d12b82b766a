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
from gradosr.audit.clusters import Groups, group
from gradosr.audit.document import FLAGGED, OVER, Found, document
from gradosr.audit.drift import changes, check_baseline
from gradosr.audit.explaining import Explaining
from gradosr.audit.false_alarms import FalseAlarms
from gradosr.audit.flagged import check_folder, write_flagged
from gradosr.audit.flags import Flags, certified, no_flags
from gradosr.audit.known import bundle_of, read_known_images
from gradosr.audit.material import embedded, stored, vectors_of
from gradosr.audit.nearest import nearest
from gradosr.audit.overview import map_of
from gradosr.audit.p_values import PValues
from gradosr.audit.prevalence import Prevalence, no_prevalence, share_of_unknown
from gradosr.audit.rows import RunTable
from gradosr.audit.space import Reference
from gradosr.audit.tally import Tally, count
from gradosr.bundle.examples import KnownExamples
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
    bundle, why_not = bundle_of(store, table, settings)
    known, more = read_known_images(store, bundle)
    notes += why_not + more
    found, changed = _found(store, table, settings, verdicts, known.reference), None
    if compared:
        changed, more = changes(table, found.tally, compared, count(compared, None, 0))
        notes += more
    facts = document(found, changed, notes)
    shown_beside = _compare(facts, found.groups, known.examples)
    if out is not None:
        _write(store, found, facts, shown_beside, Explaining.of(store, bundle, settings, pictures.rows_of(facts)), out)
    return facts


def _write(
    store: Store,
    found: Found,
    facts: dict[str, Any],
    shown_beside: dict[str, bytes],
    explaining: Explaining | None,
    out: Path,
) -> None:
    """Write the document, the page, and the lists of images; add what only their pictures tell to the document."""
    table, listed = found.table, out / facts["list"]
    _forget({FLAGGED, OVER} - {listed.name}, out)
    write_flagged(table, found.flags.cut if found.flags.count else None, found.groups.group_of, listed)
    rows = chain(pictures.rows_of(facts), export.flagged_rows(listed, MOST_PICTURED))
    source = _INPUT.validate_python(table.fingerprint["input"])
    shown = pictures.fetch(store, source, rows, table.parts, see=explaining.see if explaining else None)
    shown.known = shown_beside
    if explaining:
        facts["explained"], missing = explaining.facts()
        facts["notes"] += missing
    facts["notes"] += [f"{number} pictures missing: {pictures.REASONS[kind]}" for kind, number in shown.missing.items()]
    store.write(str(out / "audit.json"), json.dumps(facts, indent=1).encode())
    export.write(listed, shown, facts["classes"])
    report.write(facts, shown, out)


def _compare(facts: dict[str, Any], groups: Groups, examples: KnownExamples | None) -> dict[str, bytes]:
    """Add the map and the nearest known images to a document; return the JPEGs of these by id."""
    listed = pictures.rows_of(facts)
    near = nearest(groups, examples, listed)
    for one in (*groups.items, *groups.look_alikes):
        one["nearest_known"] = near.of_cluster.get(one.get("id") or one["class"], [])
    facts["map"] = map_of(groups, {row["id"] for row in listed}, facts["classes"])
    facts |= {"known_images": near.images, "nearest_known": near.of_image}
    return near.pictures


def _forget(lists: Collection[str], out: Path) -> None:
    """Remove lists that an earlier audit left in a folder, and that this one does not write."""
    for name in lists:
        for path in (out / name, (out / name).with_suffix(".csv")):
            path.unlink(missing_ok=True)


def _found(
    store: Store,
    table: RunTable,
    settings: AuditSettings,
    verdicts: pa.Table | None,
    reference: Reference | None,
) -> Found:
    calibration = _calibration(table)
    sought = [] if verdicts is None else verdicts["key"].to_pylist()
    own = settings.embeddings
    vectors = None if own else vectors_of(table)
    tally = count(table, calibration, settings.group_sample, sought, vectors=vectors)
    p_values = None if tally.p_values is None or tally.p_values.strange else tally.p_values.settled()
    share, flags = _figures(tally, p_values, settings)
    known, rate, alarms = 1 - (share.estimate or 0.0), table.about["false_alarm_rate"], None
    if p_values is not None and rate is not None and tally.images:
        alarms = FalseAlarms.of(p_values, known, rate)
    compared = embedded(store, own, table, tally) if own else stored(table, tally, reference)
    groups = group(compared, alarms, settings.max_groups, table.kind, table.about["classes"])
    labels = by_labels(verdicts, tally.over) if sought else None
    return Found(table, tally, calibration, p_values, share, flags, groups, settings.max_groups, labels)


def _calibration(table: RunTable) -> CalibrationSummary | None:
    recorded = table.about["calibration"]
    try:
        return None if recorded is None else CalibrationSummary.model_validate(recorded)
    except ValidationError as error:
        raise InputError(f"{table.folder.uri}: run.json is damaged: its calibration is not one") from error


def _figures(tally: Tally, p_values: PValues | None, settings: AuditSettings) -> tuple[Prevalence, Flags]:
    """Compute the prevalence and the flags; without exactly countable p-values, return both empty with the reason."""
    if p_values is None:
        reason = UNCALIBRATED
        if tally.p_values:
            reason = f"{tally.p_values.strange} p-values are not of the recorded calibration; score into a new output"
        return no_prevalence(reason, settings.confidence), no_flags(reason, settings.fdr)
    return share_of_unknown(p_values, settings.confidence), certified(p_values, settings.fdr)
