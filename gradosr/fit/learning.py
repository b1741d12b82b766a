"""The way from a bundle and labelled images of its runs to a bundle whose detector has learned from them.

The p-values of the new detector are valid as the old one's were: its scores depend on the images that fit it and on
labelled images of an archive, never on the calibration images, which are scored anew. B images.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gradosr.audit.rows import OpenPart, RunTable, id_of
from gradosr.bundle.bundle import DetectorOnly, load_detector, read_held_out
from gradosr.bundle.held_out import HeldOut
from gradosr.detectors import Detector, Observation
from gradosr.detectors.learned import LearnedDetector, View
from gradosr.errors import InputError
from gradosr.fit.calibrating import calibrate
from gradosr.fit.correction import Examples, choose_penalty, cross_validated, fit_correction
from gradosr.labels import read_labels, verdicts
from gradosr.scoring.rescoring import observation_of, signal_columns
from gradosr.store import Store

ENOUGH = 10
"""Least number of labelled images to learn from."""


@dataclass(frozen=True)
class Labelled:
    """Labelled images of the runs, with the signals stored of them."""

    ids: Sequence[str]
    observation: Observation
    unknown_B: torch.Tensor
    without_signals: int
    """Number of further labelled images whose signals are not stored, or that have no score."""


def learn(store: Store, bundle: str, runs: Sequence[str], out: str) -> dict[str, Any]:
    """Write a bundle to `out` whose detector has learned from the labels of `runs`, and return the facts.

    A bundle that has learned before learns anew from these labels alone. Raises InputError if there is nothing to learn
    from, BundleError if the bundle is damaged or has no held-out images.
    """
    old, held_out = load_detector(store, bundle), read_held_out(store, bundle)
    labelled = read_labelled(store, runs, old)
    base, kind = old.detector, old.manifest.detector
    if isinstance(old.detector, LearnedDetector):
        base, kind = old.detector.base, old.detector.kind
    detector, penalty = _corrected(base, kind, held_out, labelled)
    rate, classes = old.manifest.false_alarm_rate, old.manifest.classes
    calibrations = {
        precision: calibrate(detector, seen, old.calibrations["float32"].kind, rate, classes)
        for precision, seen in held_out.calibration.items()
    }
    unknown = int(labelled.unknown_B.sum())
    counts = {"labels": len(labelled.ids), "unknown": unknown, "known": len(labelled.ids) - unknown}
    facts = {**counts, "without_signals": labelled.without_signals, "penalty": penalty}
    provenance = old.manifest.provenance | {
        "lineage": [old.digest, *old.manifest.provenance.get("lineage", [])],
        "learned": {**facts, "runs": list(runs), "ids": labelled.ids},
    }
    manifest = old.manifest.model_copy(update={"detector": "learned", "provenance": provenance})
    DetectorOnly(manifest, detector, calibrations, "").save_beside(store, bundle, out)
    return {"bundle": out, **facts, "threshold": calibrations["float32"].thresholds(rate, classes)}


def _corrected(
    base: Detector, kind: str, held_out: HeldOut, labelled: Labelled
) -> tuple[LearnedDetector, float | None]:
    """Return the detector, and the penalty chosen; None if the labels do not agree on any correction."""
    scores_B = base.score(held_out.fitting)
    view = View.fit(held_out.fitting, scores_B)
    pieces = [
        (view.deviations(base.score(seen)).double().numpy(), view.signals(seen).double().numpy())
        for seen in (held_out.fitting, labelled.observation)
    ]
    z_B, x_BD = (np.concatenate(columns) for columns in zip(*pieces, strict=True))
    labelled_B = np.arange(len(z_B)) >= len(scores_B)
    unknown_B = np.append(np.zeros(len(scores_B), bool), labelled.unknown_B.numpy())
    examples = Examples(z_B, x_BD, unknown_B, labelled_B)
    penalty = choose_penalty(cross_validated(examples))
    weights_D = torch.from_numpy(fit_correction(examples, penalty).weights_D).float()
    return LearnedDetector(base, kind, view, weights_D), None if np.isinf(penalty) else penalty


def read_labelled(store: Store, runs: Sequence[str], bundle: DetectorOnly) -> Labelled:
    """Read the labelled images of the runs. Raises InputError if they are no use, with what to do."""
    ids: list[str] = []
    pieces: list[Observation] = []
    unknown: list[bool] = []
    wanted_in_all = 0
    for run in runs:
        table = RunTable(store, run)
        check_lineage(table, bundle)
        verdict = verdicts(read_labels(store, run), bundle.manifest.classes)
        if not len(verdict):
            raise InputError(f"{run}: no labels yet; `gradosr label {run} --import FILE` takes them")
        wanted = dict(zip(verdict["key"].to_pylist(), verdict["unknown"].to_pylist(), strict=True))
        wanted_in_all += len(wanted)
        for keys, seen in stored_signals(table, wanted):
            ids += map(id_of, keys)
            unknown += [wanted[key] for key in keys]
            pieces.append(seen)
    _check_enough(len(ids), sum(unknown), wanted_in_all)
    joined = Observation.joined(pieces, len(ids))
    return Labelled(ids, joined, torch.tensor(unknown), wanted_in_all - len(ids))


def check_lineage(table: RunTable, bundle: DetectorOnly) -> None:
    """Raise InputError for a run whose signals are not those of the bundle's classifier."""
    if table.fingerprint["bundle"] not in (bundle.digest, *bundle.manifest.provenance.get("lineage", [])):
        raise InputError(
            f"{table.folder.uri}: scored with another bundle ({table.fingerprint['bundle'][:12]}); labels are learned "
            "by the bundle that scored the images, or by one that has learned from it"
        )


def _check_enough(found: int, unknown: int, wanted: int) -> None:
    missing = "" if found == wanted else f" (of {wanted - found} more, no signals are stored)"
    if found < ENOUGH:
        raise InputError(f"{found} labelled images with signals{missing}; a detector learns from {ENOUGH} or more")
    if not unknown:
        raise InputError(f"{found} labelled images{missing}, none of them unknown: label some that are")


def stored_signals(table: RunTable, wanted: Collection[str]) -> list[tuple[list[str], Observation]]:
    """Return the keys and signals of the wanted images, part by part in order."""
    found: dict[tuple[str, int], tuple[list[str], Observation]] = {}

    def look(part: str, opened: OpenPart) -> None:
        names = signal_columns(opened.file.schema_arrow)
        if "logits" not in names:
            raise InputError(
                f"{table.folder.uri}: its table has no signals to learn from; score the archive with `signals: all` "
                "into a new output (--dry-run tells what they take)"
            )
        for number, keys in opened.groups(["key"]):
            rows = np.array([place for place, key in enumerate(keys["key"].to_pylist()) if key in wanted], np.int64)
            if not len(rows):
                continue
            stored = opened.group(number, ["key", "predicted_index", *names]).take(rows)
            for batch in stored.filter(stored["logits"].is_valid()).combine_chunks().to_batches():
                with table.lock:
                    found[part, number] = batch["key"].to_pylist(), observation_of(batch)

    table.each(look)
    return [found[place] for place in sorted(found)]
