"""A real, tiny archive and bundle, and a run without Ray."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from hostile import tar
from numpy.typing import NDArray
from PIL import Image

from gradosr.bundle.bundle import Bundle
from gradosr.bundle.calibration import Calibration
from gradosr.bundle.held_out import HeldOut
from gradosr.bundle.manifest import Manifest
from gradosr.classifier.build import build_classifier
from gradosr.config import ComputeSettings, OneClassSettings, ResultsInput, ScoreJob, Signals, TransformSettings
from gradosr.detectors import Known, OneClassDetector
from gradosr.errors import GradosrError, ShardUnreadable
from gradosr.results.outcome import Outcome
from gradosr.run.plan import Plan, Summary, finish, prepare
from gradosr.scoring.compute import Compute
from gradosr.scoring.observer import Observed, Observer
from gradosr.scoring.rescoring import RescoringWorker
from gradosr.scoring.worker import ShardWorker
from gradosr.store import Store

CPU = ComputeSettings(device="cpu")
CLASSES = ("cat", "dog", "ship")
ARCH = "tiny_net:tiny"
TRANSFORM = TransformSettings(resize=(16, 16), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def picture(seed: int) -> bytes:
    """A PNG of 16 x 16 random pixels: lossless, so that scores depend on nothing but the bytes."""
    return _png(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8))


def plain(value: int = 255) -> bytes:
    """A PNG of 16 x 16 pixels of one value; white."""
    return _png(np.full((16, 16, 3), value, np.uint8))


def _png(pixels: NDArray[np.uint8]) -> bytes:
    body = io.BytesIO()
    Image.fromarray(pixels).save(body, "PNG")
    return body.getvalue()


def labelled_tar(first: int, count: int) -> bytes:
    """`count` pictures with a label each."""
    members = []
    for seed in range(first, first + count):
        members += [(f"{seed:05}.png", picture(seed)), (f"{seed:05}.cls", CLASSES[seed % 3].encode())]
    return tar(members)


def write_archive(store: Store, uri: str, shards: int = 4, images: int = 6) -> None:
    """Tar shards at `uri`/00000.tar and on."""
    for shard in range(shards):
        store.write(f"{uri}/{shard:05}.tar", labelled_tar(shard * images, images))


def fit_one_class(observed: Observed) -> OneClassDetector:
    """The default detector, fitted on what was seen; the predicted classes stand for labels."""
    seen = observed.observation
    known = Known(seen, seen.logits_BK.argmax(1), observed.head)
    return OneClassDetector.fit(known, OneClassSettings(objectives=("all_hot",)))


def make_bundle(store: Store, uri: str, *, seed: int = 0, arch: str = ARCH) -> Bundle:
    """A bundle of an untrained network; its detector is fitted and calibrated on random pictures."""
    torch.manual_seed(seed)
    classifier = build_classifier(arch, {"num_classes": len(CLASSES)}, len(CLASSES), trusted=[arch])
    objectives = ("all_hot", "predicted")
    observer = Observer(classifier, TRANSFORM, Signals(objectives=objectives), Compute(torch.device("cpu")))
    images = torch.randint(0, 256, (80, 3, 16, 16), dtype=torch.uint8)
    fitting, calibration = observer(images[:40]), observer(images[40:]).observation
    detector = fit_one_class(fitting)
    scores = detector.score(calibration).numpy()
    manifest = Manifest(
        arch=arch,
        args={"num_classes": len(CLASSES)},
        classes=CLASSES,
        transform=TRANSFORM,
        detector="one_class",
        objectives=objectives,
        false_alarm_rate=0.05,
    )
    seen = fitting.observation
    held_out = HeldOut(seen, seen.logits_BK.argmax(1), {"float32": calibration})
    bundle = Bundle(manifest, classifier, detector, {"float32": Calibration.of(scores, 0.05)}, held_out=held_out)
    bundle.save(store, uri)
    return bundle


def local_job(folder: Path, **changes: object) -> ScoreJob:
    """A job over folder/archive, with the bundle made if it is not there."""
    if not (folder / "bundle").exists():
        make_bundle(Store(), str(folder / "bundle"))
    document = {
        "bundle": str(folder / "bundle"),
        "input": {"kind": "tar", "uri": f"{folder}/archive/"},
        "output": str(folder / "results"),
        "trust": [ARCH],
        "batch_size": 4,
        "device": "cpu",
    }
    return ScoreJob.model_validate({**document, **changes})


def run_here(
    job: ScoreJob, only: int | None = None, started: Callable[[], None] = lambda: None
) -> tuple[Plan, Summary]:
    """The whole run in this process; `only` scores that many pending shards and then fails the rest.

    `started` is called when the worker is ready. Verdicts on shards are the driver's.
    """
    plan = prepare(job)
    plan.claim()
    outcome = Outcome()
    if plan.pending:
        kind = RescoringWorker if isinstance(job.input, ResultsInput) else ShardWorker
        worker = kind(job, plan.fingerprint, threads=1)
        worker.ready()
        started()
        for index, shard in enumerate(plan.pending):
            if only is not None and index >= only:
                outcome.failed[shard.name] = "left for later"
                continue
            try:
                outcome.scored[shard.part] = worker.score(shard)()
            except ShardUnreadable as error:
                plan.folder.quarantine(shard, str(error), 1)
                outcome.quarantined[shard.part] = str(error)
            except GradosrError as error:
                outcome.failed[shard.name] = str(error)
    return plan, finish(plan, outcome)


def rows_of(folder: Path, columns: Sequence[str] = ("key", "unknown_score")) -> dict[str, tuple[object, ...]]:
    """Key -> the other columns, of the parts that _SUCCESS names; every key once."""
    parts = json.loads((folder / "_SUCCESS").read_text())["parts"]
    rows = [row for part in parts for row in pq.read_table(folder / "parts" / f"{part}.parquet").to_pylist()]
    keys = [row["key"] for row in rows]
    assert len(keys) == len(set(keys))
    return {row["key"]: tuple(row[name] for name in columns if name != "key") for row in rows}
