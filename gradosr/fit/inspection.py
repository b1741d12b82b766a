"""The report of `gradosr check`: how a classifier was understood, and what a batch of it costs on this machine."""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from gradosr.archive.loading import prepared_batches
from gradosr.archive.readers import every_image
from gradosr.bundle.bundle import load_bundle
from gradosr.classifier.build import input_size, probabilities
from gradosr.classifier.resolve import bring, complete
from gradosr.config import (
    CalibrationKind,
    CompleteFitJob,
    ComputeSettings,
    FitJob,
    ScoreJob,
    Serving,
    TransformSettings,
)
from gradosr.errors import InputError
from gradosr.gradients.explain import FALLBACK
from gradosr.gradients.forms import wait
from gradosr.run.console import Notes
from gradosr.run.plan import check
from gradosr.scoring.compute import choose_compute
from gradosr.scoring.embedder import load_embedder
from gradosr.scoring.memory import forget_peak, peak, resident
from gradosr.scoring.observer import Observed, Observer
from gradosr.scoring.scorer import Scorer
from gradosr.store import Store
from gradosr.text import printable

RUNS, SECONDS = 5, 5.0
"""Number of timed batches, and the seconds after which no further batch is started."""
LOOKED_AT = 1000
"""Most images of a fit job's input that are looked at to fill a batch with labelled images."""
SHOWN = 5
"""Most names of classes or parameters listed in the text."""


@dataclass(frozen=True)
class Inspection:
    """A classifier, as it was understood and measured."""

    arch: str
    classes: tuple[str, ...]
    transform: TransformSettings
    parameters: int
    """Number of single parameters in all `tensors` tensors."""
    tensors: int
    rules: dict[str, int]
    """Number of parameter tensors by the rule that computes their norms; of those that the detector needs."""
    fallback: tuple[str, ...]
    """Parameter tensors without a rule; their norms are exact as well, but computed image by image."""
    features: int | None
    """Number of penultimate features; None if the logits do not come from a linear layer."""
    detector: str
    calibration: CalibrationKind
    objectives: tuple[str, ...]
    device: str
    precision: str
    batch: int
    images_per_second: float
    """Throughput of a warm batch, without reading and decoding; the median of the timed batches."""
    peak_memory_bytes: int | None
    """Memory that a batch takes in addition to the classifier; None if the system does not report it."""
    right: int | None = None
    """Number of images in the batch whose predicted class is their label; None if there are no labels."""
    held_out_accuracy: float | None = None
    """Accuracy recorded in the bundle when it was fitted; None for a fit job."""
    embedder: str | None = None
    """The second network of a score job, and the images it gets; None if it has none."""

    def facts(self) -> dict[str, Any]:
        """Return the facts as plain data, for programs."""
        return {**vars(self), "transform": self.transform.model_dump(mode="json")}


def check_bundle(job: Serving) -> Inspection:
    """Inspect a bundle, given alone or by a score job. Raises the errors of scoring: ConfigError or InputError."""
    if isinstance(job, ScoreJob):
        check(job)
    store = Store(job.store, job.stores)
    bundle = load_bundle(store, job.bundle, job.trust)
    scorer, manifest = Scorer(bundle, job), bundle.manifest
    embedder = load_embedder(job, store, scorer.compute) if isinstance(job, ScoreJob) else None
    images = _noise(manifest.transform, job.batch_size)
    scorer.score(images)
    rate, memory = _measured(lambda: scorer.score(images), images, scorer.observer)
    return Inspection(
        arch=manifest.arch,
        classes=manifest.classes,
        detector=manifest.detector,
        calibration=bundle.calibrations[job.precision].kind,
        precision=job.precision,
        images_per_second=rate,
        peak_memory_bytes=memory,
        held_out_accuracy=manifest.provenance.get("held_out_accuracy"),
        embedder=None if embedder is None else f"{embedder.name}, {embedder.width} features; {embedder.transform}",
        **_understood(scorer.observer, images),
    )


def check_fit(job: FitJob, notes: Notes) -> Inspection:
    """Inspect the classifier of a fit job as fitting would use it.

    If it has weights, the batch consists of labelled images of the job's input; otherwise it is noise.
    """
    store = Store(job.store, job.stores)
    job = complete(job, store, notes.say)
    settings, classes = job.classifier, job.classifier.classes
    compute = choose_compute(ComputeSettings(device=job.device))
    observer = Observer(bring(job, store, notes.say), settings.transform, job.detector.signals, compute)
    observer.check(len(classes))
    images, labels = _labelled(job, store) if settings.weights else (_noise(settings.transform, job.batch_size), None)
    observed = observer(images)
    if warning := probabilities(observed.observation.logits_BK):
        notes.warn(warning)
    rate, memory = _measured(lambda: observer(images), images, observer)
    right = None if labels is None else _right(observed, labels)
    if right is not None and right * len(classes) <= len(images):
        notes.warn("no more images are given their label than by chance; check the order of the classes and transform")
    return Inspection(
        arch=settings.arch,
        classes=classes,
        detector=job.detector.kind,
        calibration=job.calibration,
        precision="float32",
        images_per_second=rate,
        peak_memory_bytes=memory,
        right=right,
        **_understood(observer, images),
    )


def _understood(observer: Observer, images_BCHW: Tensor) -> dict[str, Any]:
    """Return the facts that the classifier and the engine report about themselves."""
    parameters = list(observer.engine.classifier.parameters())
    explained = observer.explain(images_BCHW[:1])
    features_BF = observer(images_BCHW[:1]).observation.features_BF
    return {
        "transform": observer.transform,
        "parameters": sum(parameter.numel() for parameter in parameters),
        "tensors": len(parameters),
        "rules": dict(Counter(one.rule for one in explained).most_common()),
        "fallback": tuple(one.parameter for one in explained if one.rule == FALLBACK),
        "features": None if features_BF is None else features_BF.shape[1],
        "objectives": observer.signals.objectives,
        "device": observer.compute.name,
        "batch": len(images_BCHW),
    }


def _measured(work: Callable[[], object], images_BCHW: Tensor, observer: Observer) -> tuple[float, int | None]:
    """Return the images per second of work that has already run once, and the bytes that a batch adds at its peak."""
    on_gpu = observer.compute.on_gpu
    before = resident(on_gpu=on_gpu)
    told = forget_peak(on_gpu=on_gpu)
    seconds: list[float] = []
    while len(seconds) < RUNS and sum(seconds) < SECONDS:
        start = time.perf_counter()
        work()
        wait(next(observer.engine.classifier.parameters()))
        seconds.append(time.perf_counter() - start)
    memory = max(0, peak(on_gpu=on_gpu) - before) if told else None
    return len(images_BCHW) / statistics.median(seconds), memory


def _noise(transform: TransformSettings, count: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, *input_size(transform)), dtype=torch.uint8)


def _labelled(job: CompleteFitJob, store: Store) -> tuple[Tensor, Tensor]:
    """Return a batch of the first images whose label is one of the classes, and the indices of those classes."""
    indices = {name: index for index, name in enumerate(job.classifier.classes)}
    images = (image for image in islice(every_image(job.input, store), LOOKED_AT) if image.label in indices)
    threads = torch.get_num_threads()
    batches = prepared_batches(images, job.classifier.transform, job.max_pixels, job.batch_size, threads)
    readable = (image for image in chain.from_iterable(batches) if image.pixels is not None)
    taken = [(image.pixels, indices[image.encoded.label or ""]) for image in islice(readable, job.batch_size)]
    if not taken:
        raise InputError(
            f"{job.input.uri}: none of the first {LOOKED_AT} images can be read and has one of the classes as its label"
        )
    return torch.stack([pixels for pixels, _ in taken if pixels is not None]), torch.tensor([one for _, one in taken])


def _right(observed: Observed, labels_B: Tensor) -> int:
    return int((observed.observation.logits_BK.argmax(1).cpu() == labels_B).sum())


def report(found: Inspection) -> str:
    """Format an inspection for people."""
    rules = ", ".join(f"{count} {rule}" for rule, count in found.rules.items())
    needed, objectives = sum(found.rules.values()), ", ".join(found.objectives) or "a forward pass alone"
    layers = f", last {needed} of {found.tensors} tensors" if found.objectives and needed < found.tensors else ""
    memory = "" if found.peak_memory_bytes is None else f", {found.peak_memory_bytes / 2**20:,.0f} MiB at its peak"
    lines = {
        "classifier": f"{found.arch}, {found.parameters:,} parameters in {found.tensors} tensors",
        "classes": f"{len(found.classes)}: {_named(found.classes)}",
        "transform": str(found.transform),
        "detector": f"{found.detector} of {objectives}{layers}",
        "calibration": "" if found.calibration == "pooled" else "per predicted class",
        "rules": rules,
        "slow": f"{_named(found.fallback)} (no rule: image by image)" if found.fallback else "",
        "features": "none: no linear layer makes the logits" if found.features is None else str(found.features),
        "device": f"{found.device}, {found.precision}",
        "batch": f"{found.batch} images{memory}",
        "speed": f"{found.images_per_second:,.3g} images/s, without reading and decoding",
        "accuracy": _accuracy(found),
        "embedder": found.embedder or "",
    }
    return "\n".join(f"{name:<12}{printable(line)}" for name, line in lines.items() if line)


def _named(names: Sequence[str]) -> str:
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _accuracy(found: Inspection) -> str:
    if found.right is not None:
        return f"{found.right} of {found.batch} images of the input are given their label"
    return "" if found.held_out_accuracy is None else f"{found.held_out_accuracy:.4f} on the held-out images of the fit"
