"""The way from a fit job to a bundle."""

import copy
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from tempfile import gettempdir
from typing import Any

import torch
from torch import Tensor, nn

from gradosr.archive.decoded import DecodedImages
from gradosr.archive.pixel_file import Images
from gradosr.bundle.bundle import Bundle
from gradosr.bundle.held_out import HeldOut
from gradosr.bundle.manifest import Manifest
from gradosr.classifier.build import probabilities
from gradosr.classifier.resolve import bring, build, complete, renaming
from gradosr.classifier.training import train
from gradosr.classifier.weights import load_weights, read_weights
from gradosr.config import (
    CompleteFitJob,
    ComputeSettings,
    FitJob,
    Precision,
    TrainSettings,
    TransferSettings,
    TransformSettings,
)
from gradosr.config import Detector as DetectorSettings
from gradosr.detectors import ClassSplit, Detector, Known, Observation, detector_class
from gradosr.errors import ClassifierError, ConfigError
from gradosr.fit.calibrating import calibrate, check_calibration, compared_with_all
from gradosr.fit.examples import examples
from gradosr.fit.guards import (
    Calls,
    accuracy_of,
    accuracy_warnings,
    by_class,
    calls,
    check_names,
    image_warnings,
    setting_warnings,
    told_by_class,
)
from gradosr.fit.known_images import CALIBRATION, FITTING, TRAINING, KnownImages, read_known
from gradosr.gradients import Head
from gradosr.run.console import Meter, Notes
from gradosr.scoring.compute import Compute, choose_compute
from gradosr.scoring.observer import Observer
from gradosr.store import Store, join
from gradosr.text import duration, plural, printable
from gradosr.versions import software

LARGE = 10**9
"""Bytes of pixels in a temporary file from which on its place is told."""


@dataclass(frozen=True)
class Ready:
    """A fit job whose classifier is trained and whose images are read."""

    job: CompleteFitJob
    classifier: nn.Module
    """The trained classifier, in eval mode."""
    known: KnownImages
    compute: Compute


def prepare(
    asked: FitJob, notes: Notes, decoded: DecodedImages | None = None, classifier: nn.Module | None = None
) -> Ready:
    """Load or train the classifier of a fit job, and read its known images. Raises the errors of `fit`.

    A classifier that is given is not loaded; the job, then a complete one, tells where its weights will be.
    """
    store, compute = Store(asked.store, asked.stores), choose_compute(ComputeSettings(device=asked.device))
    for precision in asked.precisions:
        replace(compute, precision=precision)  # refused here if this machine does not have it, before hours of work
    job = asked if isinstance(asked, CompleteFitJob) else complete(asked, store, notes.say)
    classes = job.classifier.classes
    classifier = bring(job, store, notes.say) if classifier is None else classifier
    observer = Observer(classifier, job.classifier.transform, job.detector.signals, compute)
    observer.check(len(classes))  # before the images are read
    if isinstance(job.detector, TransferSettings):
        pseudo_unknown(job.detector, classes)
    keep_training = job.train is not None or isinstance(job.detector, TransferSettings)
    seen = Meter(notes, "reading the known images").add
    known = read_known(job, store, decoded or DecodedImages(store), classes, keep_training=keep_training, seen=seen)
    check_calibration(job, known, classes)
    notes.say(f"{len(classes)} known classes; images: {_listed(known.counts())}")
    if (size := known.pixels.nbytes) >= LARGE:
        notes.say(f"their pixels lie in a temporary file in {gettempdir()} until the end: {size / 1e6:,.1f} MB")
    # With the transfer detector, the recipe of a classifier that has weights is that of classifier 1.
    if job.train and not (job.classifier.weights and isinstance(job.detector, TransferSettings)):
        _train(classifier, known.of(TRAINING), job.train, job.classifier.transform, compute, notes, "classifier")
    return Ready(job, classifier, known, compute)


def fit(asked: FitJob, notes: Notes, *, force: bool = False) -> Bundle:
    """Make the bundle of a fit job, not saved yet. Raises ConfigError, InputError or ClassifierError.

    What looks like a mistake is warned of, or raised as InputError unless `force`.
    """
    for line in setting_warnings(asked):
        notes.warn(line)
    ready = prepare(asked, notes)
    for line in image_warnings(ready.job, ready.known, ready.job.classifier.classes):
        notes.warn(printable(line))
    return fit_prepared(ready, notes, force=force)


def fit_prepared(ready: Ready, notes: Notes, *, force: bool = False) -> Bundle:
    """Make the bundle of a job whose classifier is trained, not saved yet. Raises the errors of `fit`."""
    job, known, classes = ready.job, ready.known, ready.job.classifier.classes
    observer = Observer(ready.classifier, job.classifier.transform, job.detector.signals, ready.compute)
    head = observer.check(len(classes)).head
    seen = Meter(notes, "observing the known images", len(known.of(FITTING, CALIBRATION))).add
    fitting = observe(observer, known.of(FITTING), job.batch_size, seen)
    found = _calls(fitting, known.of(FITTING))
    if not force:
        check_names(found, classes)
    calibration = observe(observer, known.of(CALIBRATION), job.batch_size, seen)
    found += _calls(calibration, known.of(CALIBRATION))
    for line in (probabilities(fitting.logits_BK), *accuracy_warnings(found, len(classes), job.expected_accuracy)):
        if line:
            notes.warn(line)
    detector = fit_detector(ready, job.detector, fitting, head, notes)
    measured: dict[str, Any] = {
        "held_out_accuracy": accuracy_of(found),
        "accuracy_by_class": by_class(found, classes),
        "dropped_coordinates": list(detector.dropped(observer.coordinates)),
    }
    notes.say(f"closed-set accuracy on {plural(found.total(), 'held-out image')}: {accuracy_of(found):.4f}")
    notes.say(printable(told_by_class(measured["accuracy_by_class"])))
    observed: dict[Precision, Observation] = {"float32": calibration}
    observed |= {precision: _observe_again(ready, precision) for precision in job.precisions}
    calibrations = {
        precision: calibrate(detector, seen, job.calibration, job.false_alarm_rate, classes)
        for precision, seen in observed.items()
    }
    if told := compared_with_all(calibrations["float32"], classes):
        notes.say(printable(told))
    rows = fitting.finite()
    kept = {precision: seen[seen.finite()] for precision, seen in observed.items()}
    held_out = HeldOut(fitting[rows], known.of(FITTING).labels_N.to(rows.device)[rows], kept)
    manifest = _manifest(job, _provenance(job, known) | measured)
    shown = examples(job, known, fitting, calibration)
    return Bundle(manifest, ready.classifier, detector, calibrations, held_out=held_out, examples=shown)


def _observe_again(ready: Ready, precision: Precision) -> Observation:
    """Observe the calibration images in another precision of the classifier."""
    job, compute = ready.job, replace(ready.compute, precision=precision)
    observer = Observer(copy.deepcopy(ready.classifier), job.classifier.transform, job.detector.signals, compute)
    seen = observe(observer, ready.known.of(CALIBRATION), job.batch_size)
    ready.compute.prepare()
    return seen


def record_job(store: Store, job: FitJob) -> None:
    """Write the job as fit.json into the bundle's folder, before hours of work: proof that it can be written.

    Raises StoreError when it cannot.
    """
    record = job.model_dump(mode="json", exclude={"store", "stores"})
    store.write(join(job.bundle, "fit.json"), json.dumps(record, indent=2).encode())


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _calls(observation: Observation, known: KnownImages) -> Calls:
    return calls(known.labels_N, observation.logits_BK.argmax(1).cpu())


def _manifest(job: CompleteFitJob, provenance: dict[str, Any]) -> Manifest:
    return Manifest(
        arch=job.classifier.arch,
        args=job.classifier.args,
        logits=job.classifier.logits,
        classes=job.classifier.classes,
        transform=job.classifier.transform,
        detector=job.detector.kind,
        **job.detector.signals.model_dump(),
        false_alarm_rate=job.false_alarm_rate,
        provenance=provenance,
    )


def _provenance(job: CompleteFitJob, known: KnownImages) -> dict[str, Any]:
    """Describe the origin of the bundle, without store settings and environment."""
    return {
        "input": job.input.model_dump(mode="json"),
        "known": list(job.known),
        "weights": job.classifier.weights,
        "train": job.train.model_dump(mode="json") if job.train else None,
        "detector": job.detector.model_dump(mode="json"),
        "held_out": job.held_out,
        "known_examples": job.known_examples,
        "seed": job.seed,
        "images": known.counts(),
        "left_out": dict(known.left_out),
        "software": software(),
    }


def observe(
    observer: Observer, images_NCHW: Images, batch_size: int, seen: Callable[[int], object] = lambda _: None
) -> Observation:
    """Observe images batch by batch; what was observed stays in memory, pixels do not. `seen` gets their numbers."""

    def observed() -> Iterator[Observation]:
        for rows in torch.arange(len(images_NCHW)).split(batch_size):
            yield observer(images_NCHW[rows]).observation
            seen(len(rows))

    return Observation.joined(observed(), len(images_NCHW))


def finite(observation: Observation, notes: Notes) -> Tensor:
    """Tell which images are finite in all that was seen of them, [B]; a single other one would make every mean nan.

    Raises ClassifierError when none is.
    """
    rows = observation.finite()
    if not rows.any():
        raise ClassifierError(
            f"logits or gradient norms of all {len(rows)} known images are not finite; check the classifier's weights "
            "and classifier.transform"
        )
    if left_out := int((~rows).sum()):
        notes.say(f"left out {left_out} of {len(rows)} images: a logit or a gradient norm is not a finite number")
    return rows


def fit_detector(
    ready: Ready, settings: DetectorSettings, fitting: Observation, head: Head | None, notes: Notes
) -> Detector:
    """Fit a detector to the observation of the fitting images, all of them and in order.

    Images that are not finite are left out; `head` makes the logits.
    """
    rows = finite(fitting, notes)
    observation, labels_B = fitting[rows], ready.known.of(FITTING).labels_N.to(rows.device)[rows]
    known = Known(observation, labels_B, head, partial(_class_split, ready, notes))
    return detector_class(settings.kind).fit(known, settings)


def _class_split(ready: Ready, notes: Notes, settings: TransferSettings) -> ClassSplit:
    """Train or load classifier 1, which knows the pseudo-known classes, and observe the training images with it."""
    job, known, classes = ready.job, ready.known, ready.job.classifier.classes
    unknown = pseudo_unknown(settings, classes)
    pseudo_known = [index for index in range(len(classes)) if index not in unknown]
    notes.say(f"transfer: pseudo-unknown classes {', '.join(classes[index] for index in unknown)}")
    args = {**job.classifier.args, "num_classes": len(pseudo_known)}
    classifier = build(job, args, len(pseudo_known))
    if settings.weights:
        weights = read_weights(Store(job.store, job.stores), settings.weights)
        names = renaming(job.classifier.arch, args, classifier, len(pseudo_known))
        load_weights(classifier, *weights, len(pseudo_known), names)
    elif job.train:
        images = known.of(TRAINING).of_classes(pseudo_known)
        _train(classifier, images, job.train, job.classifier.transform, ready.compute, notes, "classifier 1")
    else:
        raise ConfigError("detector.kind transfer needs a train section, or detector.weights: of classifier 1")
    observer = Observer(classifier, job.classifier.transform, settings.signals, ready.compute)
    observer.check(len(pseudo_known))
    training = known.of(TRAINING)
    held_out = observe(observer, known.of(FITTING).of_classes(pseudo_known), job.batch_size)
    observation = observe(observer, training, job.batch_size)
    unknown_N = torch.isin(training.labels_N, torch.tensor(unknown))
    return ClassSplit(observation, unknown_N.to(observer.compute.device), held_out)


def pseudo_unknown(settings: TransferSettings, classes: Sequence[str]) -> list[int]:
    """Choose the classes played as unknown, as ascending indices.

    Raises ConfigError unless at least one is unknown and two are known.
    """
    chosen = settings.pseudo_unknown
    if isinstance(chosen, tuple):
        if other := [name for name in chosen if name not in classes]:
            raise ConfigError(f"detector.pseudo_unknown: {', '.join(other)} not among the classes")
        indices = [index for index, name in enumerate(classes) if name in chosen]
    else:
        count = chosen if chosen is not None else max(1, len(classes) // 3)
        order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(settings.seed)).tolist()
        indices = sorted(order[:count])
    if not 1 <= len(indices) <= len(classes) - 2:
        raise ConfigError(
            f"detector.pseudo_unknown: {len(indices)} of {len(classes)}; keep at least two known, one unknown"
        )
    return indices


def _train(
    classifier: nn.Module,
    known: KnownImages,
    recipe: TrainSettings,
    transform: TransformSettings,
    compute: Compute,
    notes: Notes,
    what: str,
) -> None:
    def observe_epoch(epoch: int, loss: float) -> None:
        meter.what = f"training {what}: epoch {epoch + 1}/{recipe.epochs}, loss {loss:.3f}"
        notes.step(meter.what)

    meter = Meter(notes, f"training {what}", recipe.epochs * len(known))
    start = time.monotonic()
    train(classifier, known, known.labels_N, recipe, transform, compute.device, observe_epoch, meter.add)
    seconds, images = time.monotonic() - start, recipe.epochs * len(known)
    notes.say(
        f"{what} trained: {plural(recipe.epochs, 'epoch')} in {duration(seconds)}, {images / seconds:,.0f} images/s"
    )
