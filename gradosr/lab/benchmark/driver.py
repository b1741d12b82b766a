"""Benchmark of the driver alone, with shards that take no time to score: listing, assigning and finishing remain."""

import io
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from gradosr.archive.shards import Shard
from gradosr.bundle.manifest import MANIFEST, Manifest
from gradosr.config import RaySettings, ScoreJob, TransformSettings
from gradosr.results.folder import RunFolder
from gradosr.results.outcome import PartStats, Progress, Underway
from gradosr.results.part import PartBuilder, schema
from gradosr.run.driver import Driver, Notes, connected
from gradosr.run.plan import finish, prepare
from gradosr.store import Store, StoredObject

FOLDER_SHARDS = 1000
"""Number of shards in one folder of the archive."""
STATUS = Path("/proc/self/status")

T = TypeVar("T")


class NullWorker:
    """A worker that publishes the same small part for every shard, and reads nothing."""

    def __init__(self, job: ScoreJob, _fingerprint: Mapping[str, Any], _threads: int) -> None:
        self._folder = RunFolder(Store(job.store, job.stores), job.output)

    def ready(self) -> None:
        """Make the part."""
        part = PartBuilder(Shard("", "", "", 0), schema())
        self._body = part.finish({}).read()
        part.close()

    def expect(self, shard: Shard) -> None:
        """Ignore the next shard, since nothing is read."""

    def underway(self) -> dict[str, Underway]:
        """Return nothing: no shard is at work for long."""
        return {}

    def score(self, shard: Shard) -> Callable[[], PartStats]:
        """Return the function that publishes the part with one PUT."""
        return lambda: self._publish(shard.part)

    def _publish(self, part: str) -> PartStats:
        start = time.perf_counter()
        self._folder.put_part(part, io.BytesIO(self._body))
        spent = time.perf_counter() - start
        return PartStats({"rows": 0, "ok": 0, "unknown": 0}, {"read": 0.0, "decode": 0.0, "score": 0.0, "write": spent})


def bench_driver(shards: int, workers: int, folder: Path, notes: Notes) -> dict[str, Any]:
    """Measure a whole run of empty shards below `folder`, and the time to recognise it as finished.

    `run_seconds` starts when all workers are ready; `driver_ms_per_shard` is the part of it outside the workers. Memory
    is this process's peak; it needs no torch. `listings` counts walks over a prefix: on S3, each takes a request per
    1,000 objects. `notes` receives the driver's messages.
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
    with _listings() as listings:
        figures = _run(job, workers, notes)
    with _listings() as listings_again:
        again, recognised = _timed(lambda: prepare(job))
    return {
        "shards": shards,
        "workers": workers,
        **figures,
        "listings": len(listings),
        "recognised_seconds": recognised,
        "recognised_listings": len(listings_again),
        "left": len(again.pending),
        "peak_bytes": peak_bytes(),
    }


def _run(job: ScoreJob, workers: int, notes: Notes) -> dict[str, Any]:
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
    own = sum(stats.seconds["write"] for stats in outcome.scored.values()) / workers
    shards = len(plan.shards)
    return {
        "prepare_seconds": prepared,
        "run_seconds": ran,
        "driver_ms_per_shard": 1000 * (ran - own) / shards,
        "null_ms_per_shard": 1000 * own / shards,
        "finish_seconds": finished,
    }


def driver_table(facts: Mapping[str, Any]) -> str:
    """Format one line per figure."""
    peak = facts["peak_bytes"]
    rows = [
        ("listing and planning", f"{facts['prepare_seconds']:.1f} s"),
        ("run", f"{facts['run_seconds']:.1f} s"),
        ("  of it the driver", f"{facts['driver_ms_per_shard']:.2f} ms per shard"),
        ("  and the null scorer", f"{facts['null_ms_per_shard']:.2f} ms per shard"),
        ("finishing", f"{facts['finish_seconds']:.1f} s"),
        ("listings", f"{facts['listings']}"),
        ("a finished run recognised", f"{facts['recognised_seconds']:.1f} s, {facts['recognised_listings']} listings"),
        ("peak memory", "-" if peak is None else f"{peak / 1e6:,.0f} MB"),
    ]
    head = f"{facts['shards']:,} shards, {facts['workers']} workers"
    return "\n".join([head, *(f"{name:28}{figure}" for name, figure in rows)])


@contextmanager
def _listings() -> Iterator[list[str]]:
    """Collect the URIs that any store is asked to list within the block."""
    plain, found = Store.list, list[str]()

    def noted(self: Store, uri: str) -> Iterator[StoredObject]:
        found.append(uri)
        return plain(self, uri)

    Store.list = noted  # type: ignore[method-assign]
    try:
        yield found
    finally:
        Store.list = plain  # type: ignore[method-assign]


def peak_bytes() -> int | None:
    """Return the peak memory of this process in bytes, or None if the system does not report it."""
    found = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text(encoding="ascii")) if STATUS.exists() else None
    return int(found[1]) << 10 if found else None


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
