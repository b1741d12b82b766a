"""The driver alone: shards that cost nothing to score, so that listing, handing out and finishing are what is left."""

import io
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from gradosr.benchmark.memory import PROC, status_bytes
from gradosr.config import RaySettings, ScoreJob, TransformSettings
from gradosr.driver import Driver, Notes, connected
from gradosr.manifest import MANIFEST, Manifest
from gradosr.parts import PartBuilder, schema
from gradosr.progress import Progress, ShardReport
from gradosr.results import RunFolder
from gradosr.run import finish, prepare
from gradosr.shards import Shard
from gradosr.store import Store

FOLDER_SHARDS = 1000
"""Shards in one folder of the archive."""

T = TypeVar("T")


class NullWorker:
    """Publishes the same small part for every shard, and reads nothing."""

    def __init__(self, job: ScoreJob, _fingerprint: Mapping[str, Any], _threads: int) -> None:
        self._folder = RunFolder(Store(job.store, job.stores), job.output)

    def ready(self) -> None:
        """Make the part."""
        part = PartBuilder(Shard("", "", "", 0), schema())
        self._body = part.finish({}).read()
        part.close()

    def process(self, shard: Shard) -> ShardReport:
        """One PUT."""
        start = time.perf_counter()
        self._folder.put_part(shard.part, io.BytesIO(self._body))
        return ShardReport(shard.part, {"rows": 0}, {"write": time.perf_counter() - start}, "null")


def bench_driver(shards: int, workers: int, folder: Path, notes: Notes) -> dict[str, Any]:
    """A whole run of empty shards below `folder`, and the recognition of it once it is finished.

    `run_seconds` count from when all workers are ready; `driver_ms_per_shard` is what of them is not the workers' own.
    Memory is this process's peak. `notes` takes the driver's messages.
    """
    (folder / "bundle").mkdir(parents=True)
    (folder / "bundle" / MANIFEST).write_text(_manifest().model_dump_json(exclude={"logits"}), encoding="utf-8")
    for number in range(shards):
        file = folder / "archive" / f"{number // FOLDER_SHARDS:04}" / f"{number:07}.tar"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    document = {"kind": "tar", "uri": f"{folder}/archive/"}
    job = ScoreJob.model_validate(
        {"bundle": f"{folder}/bundle", "input": document, "output": f"{folder}/results", "workers": workers}
    )
    plan, prepared = _timed(lambda: prepare(job))
    plan.claim()
    with connected(RaySettings(), {}):
        first: list[float] = []

        def note(progress: Progress) -> None:
            first.extend([time.perf_counter()] * (progress.workers == workers and not first))

        driver = Driver(job, plan.folder, plan.fingerprint, note, notes, threading.Event(), NullWorker)
        outcome = driver.run(plan.pending)
        ran = time.perf_counter() - first[0]
    _, finished = _timed(lambda: finish(plan, outcome))
    again, recognised = _timed(lambda: prepare(job))
    own = sum(report.seconds["write"] for report in outcome.reports) / workers
    return {
        "shards": shards,
        "workers": workers,
        "prepare_seconds": prepared,
        "run_seconds": ran,
        "driver_ms_per_shard": 1000 * (ran - own) / shards,
        "null_ms_per_shard": 1000 * own / shards,
        "finish_seconds": finished,
        "recognised_seconds": recognised,
        "left": len(again.pending),
        "peak_bytes": status_bytes("VmHWM") if PROC.exists() else None,
    }


def _manifest() -> Manifest:
    return Manifest(
        arch="torchvision:resnet18",
        args={},
        classes=("one", "two"),
        transform=TransformSettings(resize=(32, 32)),
        detector="one_class",
        objectives=("all_hot",),
        false_alarm_rate=0.05,
    )


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    start = time.perf_counter()
    return work(), time.perf_counter() - start
