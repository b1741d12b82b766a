"""Comparison of two runs over one archive: which images change sides, and which run is better on labelled ones."""

import json
from typing import Any

import pyarrow as pa
from pydantic import TypeAdapter

from gradosr.audit import pictures
from gradosr.audit.rows import RunTable
from gradosr.audit.text import plural
from gradosr.comparison.figures import figures
from gradosr.comparison.sides import Sides, Truth, side_by_side
from gradosr.config import Input
from gradosr.errors import ConfigError, InputError
from gradosr.labels import read_labels, verdicts
from gradosr.store import Store

_INPUT: TypeAdapter[Input] = TypeAdapter(Input)


def compare(store: Store, before: str, after: str) -> dict[str, Any]:
    """Compare two runs and return the document that `page.write` shows.

    Raises ConfigError for runs over different archives, InputError if there is nothing to compare.
    """
    runs = RunTable(store, before), RunTable(store, after)
    _check_archive(*runs)
    both = sorted({*runs[0].parts} & {*runs[1].parts})
    if not both:
        raise InputError(f"{after}: shares no part with {before}: every shard has changed in between; score both anew")
    classes = tuple(run.about["classes"] for run in runs)
    said = verdicts(pa.concat_tables([read_labels(store, uri) for uri in dict.fromkeys((before, after))]), classes[0])
    labels = dict(zip(said["key"].to_pylist(), said["label"].to_pylist(), strict=True))
    learned = {one for run in runs for one in run.about["learned"]}
    truth = Truth(labels, (classes[0], classes[1]), learned)
    found = side_by_side(*runs, both, truth)
    if not found.table.sum():
        raise InputError(f"{after}: no image has a score in both runs")
    return _document(runs, len(both), found)


def picture_rows(store: Store, document: dict[str, Any]) -> pictures.Pictures:
    """Fetch the pictures of the images that change sides."""
    rows = [*document["to_unknown"], *document["to_known"]]
    table = RunTable(store, document["after"]["uri"])
    return pictures.fetch(store, _INPUT.validate_python(table.fingerprint["input"]), rows, table.parts)


def _check_archive(before: RunTable, after: RunTable) -> None:
    inputs = [
        {"kind": run.fingerprint["input"]["kind"], "uri": run.fingerprint["input"]["uri"].rstrip("/")}
        for run in (before, after)
    ]
    if inputs[0] != inputs[1]:
        told = " against ".join(json.dumps(one) for one in inputs)
        raise ConfigError(
            f"{after.folder.uri}: a run over another archive than {before.folder.uri} ({told}); runs over one archive "
            "are compared"
        )


def _document(runs: tuple[RunTable, RunTable], parts: int, found: Sides) -> dict[str, Any]:
    images, learned = found.images()
    known, unknown = found.table
    names = sorted(found.classes[2], key=lambda name: (-found.classes[0][name] - found.classes[1][name], name))
    return {
        **{name: _about(run) for name, run in zip(("before", "after"), runs, strict=True)},
        "rows": found.rows,
        "images": int(found.table.sum()),
        "parts": parts,
        "table": {
            "known": {"known": int(known[0]), "unknown": int(known[1])},
            "unknown": {"known": int(unknown[0]), "unknown": int(unknown[1])},
        },
        "by_class": [
            {
                "name": name,
                "images": found.classes[2][name],
                "to_unknown": found.classes[1][name],
                "to_known": found.classes[0][name],
            }
            for name in names
        ],
        "to_unknown": found.changed[1],
        "to_known": found.changed[0],
        "labelled": figures(images[~learned]),
        "learned": figures(images[learned]),
        "notes": _notes(runs, parts, found.ambiguous),
    }


def _about(run: RunTable) -> dict[str, Any]:
    return {
        "uri": run.folder.uri,
        "bundle": run.fingerprint["bundle"],
        "false_alarm_rate": run.about["false_alarm_rate"],
        "learned_from": len(run.about["learned"]),
    }


def _notes(runs: tuple[RunTable, RunTable], parts: int, ambiguous: int) -> list[str]:
    notes = [
        f"{run.folder.uri} is not finished: compared are the parts there are"
        for run in runs
        if not run.listing.finished
    ]
    notes += [
        f"{run.folder.uri}: {plural(len(run.parts) - parts, 'part')} left out, of shards or versions of shards that "
        "the other run does not have"
        for run in runs
        if len(run.parts) > parts
    ]
    if ambiguous:
        notes.append(
            f"{plural(ambiguous, 'labelled image')} left out of the figures, of a class that one of the two bundles "
            "alone knows"
        )
    return notes
