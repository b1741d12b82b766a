"""A bundle: everything that a scoring job needs from one classifier and its unknown detector, in one folder.

    bundle.json               architecture, transform, classes, detector, provenance, digests of the rest
    classifier.safetensors    weights
    detector.safetensors      the detector's arrays
    calibration.safetensors   unknown scores of held-out known images, ascending, by precision; with a calibration per
                              class, their predicted classes too
    signals.safetensors       everything seen of the held-out known images, to learn from labels; scoring needs none
    known.parquet             a few of them to look at: picture, key and features, by class; scoring needs none

bundle.json is written last; its presence completes the bundle. Loading a bundle runs no code from it and opens no
network connection except to the store.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from gradosr.bundle.calibration import Calibration
from gradosr.bundle.examples import KnownExamples
from gradosr.bundle.held_out import HeldOut
from gradosr.bundle.manifest import (
    CLASSIFIER,
    EXAMPLES,
    HELD_OUT,
    MANIFEST,
    CalibrationSummary,
    Manifest,
    read_body,
    read_manifest,
)
from gradosr.classifier.build import build_classifier
from gradosr.classifier.weights import load_weights, unpacked
from gradosr.config import LIBRARIES, PLACES, Precision
from gradosr.detectors import Detector, restore
from gradosr.errors import BundleError
from gradosr.store import Store, join

DETECTOR, CALIBRATION = "detector.safetensors", "calibration.safetensors"


@dataclass(frozen=True)
class Bundle:
    """A classifier in eval mode on the CPU, with its detector and calibration."""

    manifest: Manifest
    classifier: nn.Module
    detector: Detector
    calibrations: Mapping[Precision, Calibration]
    """Calibrations by the precision in which the images were scored; always one of float32."""
    digest: str = ""
    """SHA-256 of bundle.json, which holds the digests of the other files; it identifies the bundle."""
    held_out: HeldOut | None = None
    """Signals of the known images held out; None in a bundle that was loaded for scoring."""
    examples: KnownExamples | None = None
    """Some of the known images held out; None in a bundle that keeps none, or was loaded for scoring."""

    def save(self, store: Store, uri: str) -> None:
        """Write all files of the bundle, bundle.json last."""
        bodies = {CLASSIFIER: _packed(self.classifier.state_dict())}
        if self.held_out:
            per_class = self.calibrations["float32"].kind == "per_class"
            bodies[HELD_OUT] = _packed(self.held_out.tensors(predicted=per_class))
        if self.examples:
            bodies[EXAMPLES] = self.examples.body()
        _write(store, uri, bodies, self.manifest, self.detector, self.calibrations)

    @property
    def own_code(self) -> str:
        """Reference to the code of the user's own that the architecture is; empty if it is a library's."""
        arch = self.manifest.arch
        return "" if arch.partition(":")[0] in LIBRARIES else arch

    def facts(self) -> dict[str, Any]:
        """Return the facts about a new bundle that a user asks for."""
        keys = ("held_out_accuracy", "accuracy_by_class", "images", "left_out", "dropped_coordinates")
        rate = self.manifest.false_alarm_rate
        return {
            "classes": list(self.manifest.classes),
            "detector": self.manifest.detector,
            "false_alarm_rate": rate,
            "threshold": self.calibrations["float32"].thresholds(rate, self.manifest.classes),
            **{key: self.manifest.provenance.get(key) for key in keys},
        }


@dataclass(frozen=True)
class DetectorOnly:
    """A bundle without its classifier: enough to score what was seen before."""

    manifest: Manifest
    detector: Detector
    calibrations: Mapping[Precision, Calibration]
    digest: str
    """SHA-256 of bundle.json."""

    def save_beside(self, store: Store, parent: str, uri: str) -> None:
        """Write a bundle that has the classifier and the held-out images of the one at `parent`.

        Raises BundleError if a file of that one is damaged.
        """
        manifest, _ = read_manifest(store, parent)
        kept = (CLASSIFIER, HELD_OUT, *({EXAMPLES} & manifest.files.keys()))
        bodies = {name: read_body(store, parent, name, manifest) for name in kept}
        _write(store, uri, bodies, self.manifest, self.detector, self.calibrations)


def _write(
    store: Store,
    uri: str,
    bodies: dict[str, bytes],
    manifest: Manifest,
    detector: Detector,
    calibrations: Mapping[Precision, Calibration],
) -> None:
    bodies = bodies | {
        DETECTOR: _packed(detector.arrays()),
        CALIBRATION: _packed({name: one for pair in calibrations.items() for name, one in _tensors(*pair).items()}),
    }
    for name, body in bodies.items():
        store.write(join(uri, name), body)
    digests = {name: hashlib.sha256(body).hexdigest() for name, body in bodies.items()}
    others = {precision: _summary(one, manifest.classes) for precision, one in calibrations.items()}
    summary = others.pop("float32")
    update = {"files": digests, "calibration": summary, "calibrations": others}
    store.write(join(uri, MANIFEST), json.dumps(manifest.model_copy(update=update).document(), indent=2).encode())


def _summary(calibration: Calibration, classes: tuple[str, ...]) -> CalibrationSummary:
    counts, edges = calibration.histogram()
    by_class = {classes[k]: len(scores) for k, scores in calibration.by_class.items()}
    return CalibrationSummary(
        images=len(calibration.scores),
        edges=tuple(map(float, edges)),
        counts=tuple(map(int, counts)),
        by_class=None if calibration.kind == "pooled" else by_class,
    )


def _tensors(precision: Precision, calibration: Calibration) -> dict[str, Tensor]:
    found = {_array("scores", precision): torch.from_numpy(calibration.scores)}
    if calibration.predicted is not None:
        found[_array("predicted", precision)] = torch.from_numpy(calibration.predicted)
    return found


def _calibration(tensors: Mapping[str, Tensor], precision: Precision) -> Calibration:
    predicted = tensors.get(_array("predicted", precision))
    scores = tensors[_array("scores", precision)].numpy()
    return Calibration(scores, None if predicted is None else predicted.numpy())


def _array(name: str, precision: Precision) -> str:
    return name if precision == "float32" else f"{name}.{precision}"


def _packed(tensors: dict[str, Tensor]) -> bytes:
    # Tied weights share memory, which safetensors refuses, so each tensor is cloned.
    return safetensors.torch.save(
        {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    )


def load_bundle(store: Store, uri: str, trust: tuple[str, ...] = ()) -> Bundle:
    """Load the bundle at a URI. Raises BundleError, ClassifierError or ConfigError, each in one line.

    `trust` names the factories from which its architecture may be imported.
    """
    own = load_detector(store, uri)
    manifest = own.manifest
    weights = _unpacked(store, uri, CLASSIFIER, manifest)
    classifier = build_classifier(manifest.arch, manifest.args, len(manifest.classes), trust, manifest.logits)
    load_weights(classifier, weights, join(uri, CLASSIFIER))
    return Bundle(manifest, classifier, own.detector, own.calibrations, own.digest)


def load_detector(store: Store, uri: str) -> DetectorOnly:
    """Load a bundle without its classifier. Raises BundleError in one line."""
    manifest, digest = read_manifest(store, uri)
    if manifest.detector not in PLACES:
        raise BundleError(f"{uri}: unknown detector {manifest.detector!r} (valid: {', '.join(PLACES)})")
    arrays, scores = (_unpacked(store, uri, name, manifest) for name in (DETECTOR, CALIBRATION))
    try:
        detector = restore(manifest.detector, arrays)
        calibrations = {one: _calibration(scores, one) for one in manifest.precisions}
    except KeyError as error:
        raise BundleError(f"{uri}: array {error} is missing") from error
    return DetectorOnly(manifest, detector, calibrations, digest)


def read_held_out(store: Store, uri: str) -> HeldOut:
    """Read the signals of a bundle's held-out images. Raises BundleError if there are none, or they are damaged."""
    manifest, _ = read_manifest(store, uri)
    if HELD_OUT not in manifest.files:
        raise BundleError(f"{uri}: no {HELD_OUT}: made by an older gradosr; fit it again to learn from labels")
    try:
        return HeldOut.from_tensors(_unpacked(store, uri, HELD_OUT, manifest), manifest.precisions)
    except KeyError as error:
        raise BundleError(f"{join(uri, HELD_OUT)}: array {error} is missing") from error


def _unpacked(store: Store, uri: str, name: str, manifest: Manifest) -> dict[str, Tensor]:
    body = read_body(store, uri, name, manifest)
    try:
        return unpacked(body)
    except safetensors.SafetensorError as error:
        raise BundleError(f"{join(uri, name)}: not a safetensors file: {error}") from error
