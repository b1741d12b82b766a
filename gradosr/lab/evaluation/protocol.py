"""Measurement of open-set recognition: detectors fitted on known images, on the same classifiers, images and views.

Each task has a folder below the output folder, with `classifier-RECIPE.safetensors` if it was trained here,
`scores.parquet` (a row per image, a column per detector) and `task.json` (a digest of the task's settings, and the
facts that rows do not hold). A task is not repeated if its files exist and its settings are the same.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch
from numpy.typing import NDArray

from gradosr.archive.decoded import DecodedImages
from gradosr.archive.pixel_file import Images, PixelFile
from gradosr.bundle.calibration import Calibration
from gradosr.classifier.build import input_size
from gradosr.config import BaselineSettings, Detector, Input, OsrProtocol, OsrTask, Signals, TransferSettings
from gradosr.detectors import Observation
from gradosr.errors import InputError, NotFound
from gradosr.fit.fitting import Ready, fit_detector, observe, prepare
from gradosr.fit.known_images import CALIBRATION, FITTING
from gradosr.gradients import count_last
from gradosr.lab.evaluation.far import make
from gradosr.lab.evaluation.metrics import auroc
from gradosr.run.console import Notes
from gradosr.scoring.observer import Observer
from gradosr.store import Store, join
from gradosr.text import plural
from gradosr.versions import software

CALIBRATED, TEST = "calibration", "test"
"""Values of the column `set`, beside the names of the sets of far images."""
RECORD, SCORES, ABOUT = "protocol.json", "scores.parquet", "task.json"
KEPT = 2**30
"""Bytes of decoded images kept for the next task; CIFAR-10 takes a fifth of them."""


@dataclass(frozen=True)
class TaskScores:
    """Scores of every image of a task."""

    name: str
    classes: tuple[str, ...]
    rows: pa.Table
    """Columns set, key, label and predicted, then a column of unknown scores per detector, higher = more unknown."""
    coordinates: Mapping[str, float]
    """AUROC of each coordinate alone, as the log of the squared norm, on the test images; none without unknown ones."""

    def of(self, name: str) -> pa.Table:
        """Select the rows of a set."""
        return self.rows.filter(pa.array(np.array(self.rows["set"].to_pylist()) == name))

    def p_values(self, protocol: OsrProtocol, detector: str, name: str = TEST) -> NDArray[np.float32]:
        """Compute the p-values of a set's images from the scores of the task's calibration images.

        Raises InputError if these are too few.
        """
        known, asked = self.of(CALIBRATED), self.of(name)
        predicted = self._predicted(known) if protocol.calibration == "per_class" else None
        rate = protocol.false_alarm_rate
        calibration = Calibration.of(known[detector].to_numpy(), rate, predicted, self.classes)
        return calibration.p_values(asked[detector].to_numpy(), self._predicted(asked))

    def _predicted(self, rows: pa.Table) -> NDArray[np.integer]:
        return np.array([self.classes.index(name) for name in rows["predicted"].to_pylist()], np.int64)


@dataclass(frozen=True)
class _Images:
    """Images of one set, at the classifier's input size."""

    name: str
    keys: Sequence[str]
    labels: Sequence[str | None]
    pixels_NCHW: Images


def run_protocol(protocol: OsrProtocol, notes: Notes) -> Iterator[TaskScores]:
    """Do every task and yield it as soon as it is done or found done. Raises the errors of fitting and reading."""
    store = Store(protocol.store, protocol.stores)
    record = protocol.model_dump(mode="json", exclude={"store", "stores"})
    store.write(join(protocol.output, RECORD), json.dumps(record, indent=2).encode())  # fails early if not writable
    decoded = DecodedImages(store, KEPT if len(protocol.tasks) > 1 else 0)
    for task in map(protocol.with_recipe, protocol.tasks):
        yield _found(protocol, task, store) or _done(protocol, task, store, decoded, notes)


def detectors_of(protocol: OsrProtocol, task: OsrTask) -> dict[str, Detector]:
    """Join the detectors of the protocol and the task, by name, the protocol's first."""
    return {**protocol.detectors, **task.detectors}


def is_baseline(settings: Detector) -> bool:
    """Tell a published detector from ours and the paper's."""
    return isinstance(settings, BaselineSettings)


def _made_of(protocol: OsrProtocol, task: OsrTask) -> str:
    left_out = {"store", "stores", "tasks", "train", "detectors", "output", "device", "resamplings", "batch_size"}
    left_out |= {"data", "calibration"}  # which no score depends on
    document = protocol.model_dump(mode="json", exclude=left_out)
    document |= {"task": task.model_dump(mode="json")}
    document |= {"detectors": {name: one.model_dump(mode="json") for name, one in detectors_of(protocol, task).items()}}
    return _digest(document)


def _digest(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _found(protocol: OsrProtocol, task: OsrTask, store: Store) -> TaskScores | None:
    folder = join(protocol.output, task.name)
    try:
        about = json.loads(store.read(join(folder, ABOUT)))
        if about["made_of"] != _made_of(protocol, task):
            return None
        body = pa.BufferReader(store.read(join(folder, SCORES)))
        rows = pq.ParquetFile(body, pre_buffer=False).read(use_threads=False)
    except NotFound:
        return None
    return TaskScores(task.name, tuple(about["classes"]), rows, about["coordinates"])


def _done(protocol: OsrProtocol, task: OsrTask, store: Store, decoded: DecodedImages, notes: Notes) -> TaskScores:
    folder, detectors = join(protocol.output, task.name), detectors_of(protocol, task)
    notes.say(f"{task.name}: {plural(len(detectors), 'detector')}")
    ready = _ready(protocol, task, folder, store, decoded, notes)
    sets = [_calibration(ready), *_unseen(protocol, task, ready, decoded)]
    columns: dict[str, NDArray[Any]] = {}
    predicted: list[str] = []
    coordinates: dict[str, float] = {}
    for mirror in sorted({one.signals.mirror for one in detectors.values()}):
        seen = _Seen(protocol, task, ready, mirror)
        fitting = seen.observe(ready.known.of(FITTING))
        observed = [seen.observe(images.pixels_NCHW) for images in sets]
        for name, settings in detectors.items():
            if settings.signals.mirror == mirror:
                detector = fit_detector(ready, settings, seen.narrowed(fitting, settings.signals), seen.head, notes)
                scores = [detector.score(seen.narrowed(one, settings.signals)).cpu().numpy() for one in observed]
                columns[name] = np.concatenate(scores)
        predicted = [ready.job.classifier.classes[k] for one in observed for k in one.logits_BK.argmax(1).tolist()]
        coordinates = _coordinates(protocol, seen, observed[1], sets[1], ready.job.classifier.classes)
    rows = pa.table(
        {
            "set": [one.name for one in sets for _ in one.keys],
            "key": [key for one in sets for key in one.keys],
            "label": pa.array([label for one in sets for label in one.labels], pa.string()),
            "predicted": predicted,
            **{name: columns[name] for name in detectors},
        }
    )
    body = pa.BufferOutputStream()
    pq.write_table(rows, body, compression="zstd")
    store.write(join(folder, SCORES), body.getvalue().to_pybytes())
    about = {"made_of": _made_of(protocol, task), "classes": ready.job.classifier.classes, "coordinates": coordinates}
    store.write(join(folder, ABOUT), json.dumps(about | {"software": software()}, indent=2).encode())
    return TaskScores(task.name, ready.job.classifier.classes, rows, coordinates)


def _ready(
    protocol: OsrProtocol, task: OsrTask, folder: str, store: Store, decoded: DecodedImages, notes: Notes
) -> Ready:
    """Prepare the task's classifier; one that was trained here before is read, not trained again."""
    detectors = detectors_of(protocol, task).values()
    # Only a detector that is trained on a class split makes `prepare` read the training images.
    first = next((one for one in detectors if isinstance(one, TransferSettings)), next(iter(detectors)))
    trained = not task.classifier.trained
    recipe = protocol.model_dump(mode="json", include={"input", "seed"})
    recipe |= task.model_dump(mode="json", exclude={"detectors", "unknown"})
    weights = join(folder, f"classifier-{_digest(recipe)[:12]}.safetensors")
    if trained and store.exists(weights):
        classifier = task.classifier.model_copy(update={"weights": weights})
        task, trained = task.model_copy(update={"classifier": classifier}), False
    ready = prepare(protocol.fit_job(task, first), notes, decoded)
    if trained:
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in ready.classifier.state_dict().items()}
        store.write(weights, safetensors.torch.save(state))
    return ready


def _calibration(ready: Ready) -> _Images:
    known = ready.known.of(CALIBRATION)
    names = [str(number) for number in range(len(known))]
    return _Images(CALIBRATED, names, [ready.job.classifier.classes[k] for k in known.labels_N.tolist()], known)


def _unseen(protocol: OsrProtocol, task: OsrTask, ready: Ready, decoded: DecodedImages) -> Iterator[_Images]:
    """Read the test images, then every set of far images."""
    classes = ready.job.classifier.classes
    wanted = {*classes, *task.unknown}
    test = _read(TEST, protocol.test, protocol, ready, decoded, lambda label: not task.unknown or label in wanted)
    if missing := sorted(set(task.unknown) - set(test.labels)):
        raise InputError(f"{protocol.test.uri}: no image of {', '.join(missing)}, unknown to task {task.name}")
    yield test
    shown = {label for name in classes for label in protocol.shows.get(name, ())}
    for name, far in protocol.far.items():
        if isinstance(far, int):
            pixels = make(name, far, input_size(ready.job.classifier.transform), protocol.seed)
            yield _Images(name, [f"{name}/{number}" for number in range(far)], [None] * far, pixels)
        else:
            yield _read(name, far, protocol, ready, decoded, lambda label: label not in shown)


def _read(
    name: str,
    source: Input,
    protocol: OsrProtocol,
    ready: Ready,
    decoded: DecodedImages,
    takes: Callable[[str | None], bool],
) -> _Images:
    transform = ready.job.classifier.transform
    read = decoded.read(source, transform, protocol.max_pixels, lambda image: takes(image.label))
    pixels, keys, labels = PixelFile(), list[str](), list[str | None]()
    for image in read:
        if image.pixels is not None:
            pixels.append(image.pixels)
            keys.append(image.encoded.key)
            labels.append(image.encoded.label)
    if not keys or (name == TEST and None in labels):
        wants = "no readable image" if not keys else "an image without a label"
        raise InputError(f"{source.uri}: {wants}; `{name}` of the protocol needs them")
    return _Images(name, keys, labels, pixels)


class _Seen:
    """One pass over images for all detectors of the same views."""

    def __init__(self, protocol: OsrProtocol, task: OsrTask, ready: Ready, mirror: bool) -> None:
        wanted = [one.signals for one in detectors_of(protocol, task).values() if one.signals.mirror == mirror]
        objectives = dict.fromkeys([*protocol.objectives, *(name for one in wanted for name in one.objectives)])
        watched = dict.fromkeys(name for one in wanted for name in one.watched)
        # The protocol's own objectives are reported tensor by tensor.
        asked = [one.layers for one in wanted if one.objectives]
        layers = 1.0 if protocol.objectives else max(asked, default=1.0)
        self._all = Signals(objectives=tuple(objectives), watched=tuple(watched), layers=layers, mirror=mirror)
        self._tensors = len(list(ready.classifier.parameters()))
        self._observer = Observer(ready.classifier, ready.job.classifier.transform, self._all, ready.compute)
        self.head = self._observer.check(len(ready.job.classifier.classes)).head
        self._batch_size = protocol.batch_size

    def observe(self, images_NCHW: Images) -> Observation:
        """Observe images for all detectors at once."""
        return observe(self._observer, images_NCHW, self._batch_size)

    def narrowed(self, observation: Observation, signals: Signals) -> Observation:
        """Reduce the observation to the objectives and layers that a detector asks for."""
        parameters = count_last(self._all.layers, self._tensors)
        left_out = parameters - count_last(signals.layers, self._tensors)
        first = [self._all.objectives.index(name) * parameters for name in signals.objectives]
        columns = [start + p for start in first for p in range(left_out, parameters)]
        columns_C = torch.tensor(columns, dtype=torch.long, device=observation.log_norms_BC.device)
        return replace(observation, log_norms_BC=observation.log_norms_BC[:, columns_C])

    def coordinates(self, observation: Observation) -> dict[str, NDArray[np.float32]]:
        return dict(zip(self._observer.coordinates, observation.log_norms_BC.T.cpu().numpy(), strict=True))


def _coordinates(
    protocol: OsrProtocol, seen: _Seen, test: Observation, images: _Images, classes: Sequence[str]
) -> dict[str, float]:
    unknown = ~np.isin(np.array(images.labels, dtype=str), list(classes))
    if unknown.all() or not (unknown.any() or protocol.far):
        raise InputError(f"{protocol.test.uri}: the test images need known and unknown classes of every task")
    if not unknown.any():
        return {}
    return {name: auroc(values, unknown) for name, values in seen.coordinates(test).items()}
