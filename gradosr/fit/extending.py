"""The way from a bundle and labelled images of a new class to a bundle that knows the class.

The classifier gets one row more in its last layer (new_class.py). Then it is fitted as by `gradosr fit`, to the images
that the parent was fitted with, split as they were: its gradients depend on the new logits, so held-out images are
observed again. Labelled images fit the new row alone; where there are enough of the new class, some of them are held
out and tell how many are named right. They do not calibrate, because they were chosen by their scores, and p-values
hold only for images that are exchangeable with those that calibrate: the p-values of the new bundle are those of the
parent's known classes, and the rate at which images of the new class are over the threshold is not certified until it
is fitted with held-out images of all classes. The new bundle is calibrated as the parent is; per class, images
that are taken for the new one are compared with the calibration images that are, or with all of them if these are
hardly any.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gradosr.audit.proportions import wilson
from gradosr.audit.rows import RunTable, id_of
from gradosr.bundle.bundle import Bundle, DetectorOnly, load_bundle, read_held_out
from gradosr.bundle.held_out import HeldOut
from gradosr.bundle.manifest import CLASSIFIER
from gradosr.classifier.widening import head_names, widened, wider_args
from gradosr.config import CompleteFitJob, ComputeSettings, ExtendSettings, Signals
from gradosr.detectors import Observation
from gradosr.errors import ConfigError, InputError
from gradosr.fit.fitting import Ready, fit_prepared, observe, prepare, record_job
from gradosr.fit.known_images import CALIBRATION
from gradosr.fit.learning import check_lineage, stored_signals
from gradosr.fit.new_class import NewRow, Pictures, fit_new_row
from gradosr.labels import KNOWN, UNKNOWN, read_labels, verdicts
from gradosr.run.console import Notes
from gradosr.scoring.compute import choose_compute
from gradosr.scoring.observer import Observer
from gradosr.store import Store, join

ENOUGH = 20
"""Least number of labelled images that make a class."""
HELD_OUT = 4
"""Number of labelled images of the new class of which one is held out, from twice ENOUGH on."""
MOST_LOST = 0.005
"""Largest accuracy on the images of the known classes that may be lost, measured on the calibration images."""


@dataclass(frozen=True)
class Labelled:
    """Labelled images that tell what is of the new class and what is not."""

    ids: Sequence[str]
    observation: Observation
    new_B: torch.Tensor


def extend(
    bundle: str, runs: Sequence[str], name: str, out: str, settings: ExtendSettings, notes: Notes, *, force: bool
) -> tuple[Bundle, dict[str, Any]]:
    """Return a bundle that knows the class `name` as well, not saved yet, and the facts.

    Raises InputError if labels are too few, or if the known classes lose more than MOST_LOST and not `force`;
    ConfigError, ClassifierError or BundleError if the bundle cannot be extended.
    """
    store = Store(settings.store, settings.stores)
    parent = load_bundle(store, bundle, settings.trust)
    held_out = read_held_out(store, bundle)
    _check(parent, name, bundle)
    labelled = read_labelled(store, runs, name, parent)
    pictures, fresh_B = _pictures(held_out, labelled), np.append(np.zeros(len(held_out.fitting), bool), apart(labelled))
    row = fit_new_row(pictures[~fresh_B])
    job = _job(parent, name, out, settings)
    wider = _wider(parent, row, job)
    record_job(store, job)
    fitted_to = int(pictures.new_B[~fresh_B].sum())
    notes.say(f"{name}: a new row from {fitted_to} labelled images; the known images are read again")
    ready = prepare(job, notes, classifier=wider)
    _check_split(ready, parent)
    accuracy = measured(ready)
    lost = accuracy["before"] - accuracy["after"]
    if lost > MOST_LOST and not force:
        raise InputError(
            f"{name}: the known classes would lose {100 * lost:.2f} points of accuracy on the calibration images, more "
            f"than {100 * MOST_LOST:g}; label more images of it, or let --force accept that"
        )
    facts = {"class": name, "labels": int(labelled.new_B.sum()), "found_by_cross_validation": row.found}
    facts |= {"fitted_to": fitted_to, "held_out": _named(row, pictures[fresh_B])}
    facts |= {"penalty": row.penalty, "accuracy": accuracy}
    learned = [one for one, fresh in zip(labelled.ids, apart(labelled), strict=True) if not fresh]
    ids = list(dict.fromkeys([*parent.manifest.provenance.get("extended", {}).get("ids", ()), *learned]))
    fitted = fit_prepared(ready, notes, force=force)
    origin = {"extended": {**facts, "parent": parent.digest, "runs": list(runs), "ids": ids}}
    manifest = fitted.manifest.model_copy(update={"provenance": fitted.manifest.provenance | origin})
    return replace(fitted, manifest=manifest, classifier=wider), facts


def _check(parent: Bundle, name: str, uri: str) -> None:
    manifest = parent.manifest
    if name in (KNOWN, UNKNOWN, *manifest.classes):
        raise ConfigError(f"--class {name}: {uri} knows {', '.join(manifest.classes)}; name a class of its labels")
    if manifest.provenance["detector"]["kind"] == "transfer":
        raise ConfigError(
            f"{uri}: a transfer detector is trained on images of every class; fit one anew with those of {name}"
        )


def read_labelled(store: Store, runs: Sequence[str], name: str, parent: Bundle) -> Labelled:
    """Read the labelled images that are of the new class, or surely not. Raises InputError if they are too few.

    An image of which nothing is known but that it is unknown may be of the new class, and is left out.
    """
    own = DetectorOnly(parent.manifest, parent.detector, parent.calibrations, parent.digest)
    ids: list[str] = []
    pieces: list[Observation] = []
    new: list[bool] = []
    said: set[str] = set()
    for run in runs:
        table = RunTable(store, run)
        check_lineage(table, own)
        verdict = verdicts(read_labels(store, run), parent.manifest.classes)
        labels = dict(zip(verdict["key"].to_pylist(), verdict["label"].to_pylist(), strict=True))
        said |= {label for label in labels.values() if label not in (KNOWN, UNKNOWN, *parent.manifest.classes)}
        for keys, seen in stored_signals(table, {key for key, label in labels.items() if label != UNKNOWN}):
            ids += map(id_of, keys)
            new += [labels[key] == name for key in keys]
            pieces.append(seen)
    if sum(new) < ENOUGH:
        others = "" if name in said else f" (labels name {', '.join(sorted(said)) or 'no new class'})"
        raise InputError(
            f"{', '.join(runs)}: {sum(new)} images labelled {name} with stored signals{others}; a class needs {ENOUGH}"
        )
    return Labelled(ids, Observation.joined(pieces, len(ids)), torch.tensor(new))


def apart(labelled: Labelled) -> NDArray[np.bool_]:
    """Return which labelled images are held out from fitting; none if too few would be left.

    Ids are hashes, so that those of the smallest ones are a random share, which stays much the same when labels are
    added. An image of two runs is on the same side in both.
    """
    new = sorted({one for one, is_new in zip(labelled.ids, labelled.new_B.tolist(), strict=True) if is_new})
    chosen = set(new[: len(new) // HELD_OUT] if len(new) >= 2 * ENOUGH else ())
    return np.array([one in chosen for one in labelled.ids], bool)


def _named(row: NewRow, fresh: Pictures) -> dict[str, Any] | None:
    """Return how many of the held-out images are called by the name of the new class, and the share with its interval.

    None if none was held out.
    """
    images, named = len(fresh.new_B), int(row.takes(fresh).sum())
    if not images:
        return None
    low, high = wilson(named, images)
    return {"images": images, "named": named, "estimate": named / images, "low": low, "high": high}


def _pictures(held_out: HeldOut, labelled: Labelled) -> Pictures:
    both = (held_out.fitting, labelled.observation)
    known_B = np.concatenate([held_out.fitting_labels_B.numpy(), np.full(len(labelled.ids), -1)])
    return Pictures(
        np.concatenate([seen.features().double().numpy() for seen in both]),
        np.concatenate([seen.logits_BK.double().numpy() for seen in both]),
        np.append(np.zeros(len(held_out.fitting), bool), labelled.new_B.numpy()),
        known_B,
    )


def _job(parent: Bundle, name: str, out: str, settings: ExtendSettings) -> CompleteFitJob:
    """Return the job that fits the new bundle as the parent was fitted; its weights are those of the new bundle."""
    manifest, origin = parent.manifest, parent.manifest.provenance
    classes = (*manifest.classes, name)
    document = {
        "classifier": {
            "arch": manifest.arch,
            "args": wider_args(manifest.arch, manifest.args, len(classes)),
            "weights": join(out, CLASSIFIER),
            "classes": classes,
            "logits": manifest.logits,
            "transform": manifest.transform,
        },
        "input": origin["input"],
        "known": origin.get("known") or manifest.classes,
        "held_out": origin["held_out"],
        "known_examples": origin.get("known_examples", "none"),  # bundles that made no choice kept nothing
        "seed": origin["seed"],
        "detector": origin["detector"],
        "false_alarm_rate": manifest.false_alarm_rate,
        "calibration": parent.calibrations["float32"].kind,
        "precisions": tuple(manifest.calibrations),
        "bundle": out,
    }
    return CompleteFitJob.model_validate(document | settings.model_dump(exclude={"trust"}))


def _wider(parent: Bundle, row: NewRow, job: CompleteFitJob) -> torch.nn.Module:
    """Return the parent's classifier with the new row. Raises ClassifierError if it has no room for one."""
    manifest, settings = parent.manifest, job.classifier
    compute = choose_compute(ComputeSettings(device=job.device))
    head = Observer(parent.classifier, manifest.transform, Signals(), compute).check(len(manifest.classes)).head
    weight, bias = head_names(parent.classifier, head)
    rows = {weight: torch.from_numpy(row.weight_F), bias: torch.tensor(row.bias)}
    # The parent was loaded, and so its architecture is trusted or a library's.
    return widened(
        parent.classifier, rows, settings.arch, settings.args, len(settings.classes), (settings.arch,), settings.logits
    )


def _check_split(ready: Ready, parent: Bundle) -> None:
    """Raise InputError if other images are held out than for the parent, as then some that calibrate fitted the row."""
    now, then = ready.known.counts(), parent.manifest.provenance["images"]
    uses = ("fitting", "calibration")
    found, wanted = (" and ".join(f"{counts[use]} {use}" for use in uses) for counts in (now, then))
    if found != wanted:
        raise InputError(
            f"{ready.job.input.uri}: {found} images of the known classes are held out, and were {wanted} when the "
            "bundle was fitted; it can be extended with those images alone"
        )


def measured(ready: Ready) -> dict[str, Any]:
    """Return the accuracy of the known classes on the calibration images, before and after, in all and by class.

    The old logits are the first of the new ones, so one pass tells both.
    """
    job, known = ready.job, ready.known.of(CALIBRATION)
    signals = Signals(mirror=job.detector.signals.mirror)
    observer = Observer(ready.classifier, job.classifier.transform, signals, ready.compute)
    logits_BK = observe(observer, known, job.batch_size).logits_BK.cpu()
    before_B, after_B = (one_BK.argmax(1) == known.labels_N for one_BK in (logits_BK[:, :-1], logits_BK))
    by_class = {
        name: {"before": _mean(before_B[known.labels_N == k]), "after": _mean(after_B[known.labels_N == k])}
        for k, name in enumerate(job.classifier.classes[:-1])
    }
    return {"before": _mean(before_B), "after": _mean(after_B), "by_class": by_class, "images": len(known)}


def _mean(right_B: torch.Tensor) -> float | None:
    return float(right_B.double().mean()) if len(right_B) else None


def told(facts: Mapping[str, Any]) -> list[str]:
    """Return the facts as lines for people."""
    accuracy, name, found = facts["accuracy"], facts["class"], facts["held_out"]
    lines = [
        f"accuracy of the known classes on {accuracy['images']} calibration images: {accuracy['before']:.4f} before, "
        f"{accuracy['after']:.4f} after",
        *(f"  {one}: {_both(both)}" for one, both in accuracy["by_class"].items()),
        f"{name}: of {facts['fitted_to']} labelled images, {facts['found_by_cross_validation']:.0%} are recognised by "
        "a row fitted without them",
    ]
    if found is None:
        return [
            *lines,
            f"{name}: from {2 * ENOUGH} labelled images on, some are held out to tell how many are named right",
        ]
    return [
        *lines,
        f"{name}: {found['named']} of {found['images']} labelled images that were held out are named right, "
        f"{found['estimate']:.0%} ({found['low']:.0%} to {found['high']:.0%})",
    ]


def _both(accuracy: Mapping[str, float | None]) -> str:
    if accuracy["before"] is None:
        return "no calibration image"
    return f"{accuracy['before']:.4f}, {accuracy['after']:.4f}"
