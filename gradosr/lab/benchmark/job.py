"""Benchmark of a whole job against its limits: the engine alone, reading and decoding alone, and a Ray Data pipeline.

All contenders run on one local Ray, with the same number of actors and threads, in turn within every round. Set-up is
not counted, nor is each worker's first shard, during which the engine makes its plan.
"""

import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gradosr.archive.shards import Shard, list_shards
from gradosr.config import ImagesInput, S3Settings, ScoreJob
from gradosr.errors import ConfigError, InputError, RunFailed
from gradosr.lab.benchmark.archives import MADE_UP, SMALL, write_archive, write_bundle
from gradosr.lab.benchmark.peer import Setting, peer_rate, ray_session, settings
from gradosr.lab.seaweedfs import SeaweedFS
from gradosr.results.outcome import PartStats, Progress
from gradosr.results.part import STAGES
from gradosr.run.console import Notes
from gradosr.run.driver import Driver
from gradosr.run.driver.actor import MakeWorker, shard_worker
from gradosr.run.plan import prepare
from gradosr.scoring.compute import choose_compute
from gradosr.scoring.worker import ShardWorker
from gradosr.store import Store, join

ENGINE, LOADING, JOB, PEER = "engine alone", "read and decode alone", "job", "Ray Data"
BUCKET = "bench"


class EngineWorker(ShardWorker):
    """A worker that scores a shard's batches from memory; loading them is not counted."""

    def expect(self, shard: Shard) -> None:
        """Ignore the next shard, so that nothing is read during scoring."""

    def score(self, shard: Shard) -> Callable[[], PartStats]:
        """Score the shard and publish nothing; its `score` seconds are the whole measured time."""
        batches = [
            torch.stack([image.pixels for image in batch if image.pixels is not None])
            for batch in self._take(shard).batches
        ]
        start = time.perf_counter()
        for images_BCHW in batches:
            self._scorer.score(images_BCHW)
        spent, rows = time.perf_counter() - start, sum(map(len, batches))
        return lambda: PartStats({"rows": rows}, {"score": spent})


class LoadingWorker(ShardWorker):
    """A worker that reads and decodes, but does not score."""

    def score(self, shard: Shard) -> Callable[[], PartStats]:
        """Read the shard and count its rows; publish nothing."""
        rows = sum(map(len, self._take(shard).batches))
        return lambda: PartStats({"rows": rows}, {})


class MadeUpArchive(NamedTuple):
    """An archive to generate, in place of a user's own job."""

    kind: str
    """Kind of archive: tar or parquet."""
    images: int | None
    """Images in each shard; None: as many as take about ten seconds."""


class Sizes(NamedTuple):
    """The amount of work that is measured."""

    workers: int
    threads: int
    """Threads of each worker."""
    shards: int
    rounds: int


@dataclass(frozen=True)
class Bench:
    """A job whose input and bundle are copies in the benchmark's own store; every run has a folder in its output."""

    job: ScoreJob
    sizes: Sizes
    notes: Notes


def bench_job(
    source: ScoreJob | MadeUpArchive, sizes: Sizes, folder: Path, notes: Notes, *, peer: bool
) -> dict[str, Any]:
    """Return images per second of all contenders, medians over the rounds, and the job's ratios to the others.

    The first shards of a user's job are copied, repeatedly if it has too few. Files are written below `folder`. Raise
    ConfigError or InputError, each in one line.
    """
    if sizes.shards <= sizes.workers:
        raise ConfigError(
            f"--shards {sizes.shards}: the first shard of each of {sizes.workers} workers is not counted; ask for more"
        )
    with _store(folder) as (store, base, place):
        stage = partial(_made_up, source) if isinstance(source, MadeUpArchive) else partial(_copied, source)
        document = {
            **stage(store, base, sizes.shards),
            "output": join(base, "results"),
            "store": place.model_dump(),
            "workers": {"max": sizes.workers, "cpus": sizes.threads},
        }
        job = ScoreJob.model_validate(document)
        with ray_session():
            peers = settings(job.batch_size, sizes.workers, sizes.threads) if peer else []
            figures = _measure(Bench(job, sizes, notes), peers)
    return {
        "archive": f"made up, {source.kind}" if isinstance(source, MadeUpArchive) else source.input.uri,
        "bundle": MADE_UP[source.kind].arch if isinstance(source, MadeUpArchive) else source.bundle,
        "store": "local files" if place.endpoint_url is None else "SeaweedFS on this machine",
        "device": choose_compute(job).name,
        "torch": torch.__version__,
        "batch_size": job.batch_size,
        "precision": job.precision,
        **sizes._asdict(),
        **figures,
    }


@contextmanager
def _store(folder: Path) -> Iterator[tuple[Store, str, S3Settings]]:
    """Start a real S3 server if it is installed, else use local files; yield store, base URI and access settings."""
    try:
        server = SeaweedFS(folder / "seaweedfs")
        server.__enter__()
    except InputError:
        yield Store(), str(folder), S3Settings()
        return
    try:
        server.create_bucket(BUCKET)
        os.environ.update(server.environment())
        place = S3Settings(endpoint_url=server.endpoint_url, addressing_style="path")
        yield Store(place), f"s3://{BUCKET}", place
    finally:
        server.__exit__(None, None, None)


def _made_up(source: MadeUpArchive, store: Store, base: str, shards: int) -> dict[str, Any]:
    made = MADE_UP[source.kind]
    write_bundle(made, store, join(base, "bundle"))
    archive = write_archive(made, store, join(base, "archive"), shards, source.images or made.images)
    return {"bundle": join(base, "bundle"), "input": archive, "trust": [SMALL]}


def _copied(job: ScoreJob, store: Store, base: str, shards: int) -> dict[str, Any]:
    """Copy the job's own bundle and the beginning of its archive to the benchmark's store."""
    if isinstance(job.input, ImagesInput):
        raise ConfigError("bench job: input.kind images; expected tar or parquet")
    own = Store(job.store, job.stores)
    for stored in own.list(join(job.bundle, "")):
        store.write(join(base, f"bundle/{stored.uri.rpartition('/')[2]}"), own.read(stored.uri))
    for number, shard in enumerate(islice(cycle(list_shards(job.input, own)), shards)):
        ending = next(end for end in job.input.suffixes if shard.uri.lower().endswith(end))
        with own.open(shard.stored) as body:
            store.write(join(base, f"archive/{number:05}{ending}"), body)
    source = job.input.model_dump(mode="json") | {"uri": join(base, "archive/"), "label_names": None}
    keep = {"batch_size", "device", "precision", "max_memory", "features", "representation", "max_pixels", "trust"}
    return job.model_dump(mode="json", include=keep) | {"bundle": join(base, "bundle"), "input": source}


def _measure(bench: Bench, peers: list[Setting]) -> dict[str, Any]:
    """Run all contenders in turn, round by round."""
    stages: list[dict[str, float]] = []
    contenders: dict[str, Callable[[str], float]] = {
        ENGINE: lambda output: _engine_rate(bench, output),
        LOADING: lambda output: _loading_rate(bench, output),
        JOB: lambda output: _job_rate(bench, output, stages),
    }
    tried = {setting: _peer_rate(bench, f"tried-{number}", setting) for number, setting in enumerate(peers)}
    if tried:
        best = max(tried, key=lambda setting: tried[setting])
        contenders[PEER] = lambda output: _peer_rate(bench, output, best)
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    rounds = bench.sizes.rounds
    for turn in range(rounds):
        for number, (name, measure) in enumerate(contenders.items()):
            rates[name].append(measure(f"{turn}-{number}"))
            bench.notes.say(f"round {turn + 1} of {rounds}: {name}: {rates[name][-1]:,.1f} images/s")
    return {
        "images_per_second": {name: statistics.median(found) for name, found in rates.items()},
        "job_by": {
            name: statistics.median(mine / other for mine, other in zip(rates[JOB], found, strict=True))
            for name, found in rates.items()
            if name != JOB
        },
        "job_stages": {stage: statistics.median(one[stage] for one in stages) for stage in STAGES},
        "peers": [{**asdict(setting), "images_per_second": rate} for setting, rate in tried.items()],
        "by_round": rates,
    }


class Course(NamedTuple):
    """The course of one run."""

    parts: list[PartStats]
    """Parts in the order in which they were finished, without the first one of each worker."""
    rate: float
    """Images per second, counted after as many shards are done as there are workers."""


def _run(bench: Bench, output: str, make: MakeWorker) -> Course:
    """Let the driver score the archive into a folder of its own.

    Raise RunFailed unless every shard becomes a part.
    """
    job = bench.job.model_copy(update={"output": join(bench.job.output, output)})
    plan = prepare(job)
    plan.claim()
    seen: list[tuple[float, int]] = []  # time at which a shard was done, and the rows so far

    def observe(progress: Progress) -> None:
        now = time.perf_counter(), progress.counts["rows"]
        seen.extend([now] * (progress.done - len(seen)))

    driver = Driver(job, plan.folder, plan.fingerprint, observe, bench.notes, threading.Event(), make)
    parts = list(driver.run(plan.pending).scored.values())
    if len(parts) < len(plan.pending):
        raise RunFailed(f"{len(plan.pending) - len(parts)} of {len(plan.pending)} shards became no part")
    (start, before), (end, rows) = seen[bench.sizes.workers - 1], seen[-1]
    return Course(parts[bench.sizes.workers :], (rows - before) / (end - start))


def _engine_rate(bench: Bench, output: str) -> float:
    parts = _run(bench, output, EngineWorker).parts
    return bench.sizes.workers * _each(parts, "score")


def _loading_rate(bench: Bench, output: str) -> float:
    return _run(bench, output, LoadingWorker).rate


def _job_rate(bench: Bench, output: str, stages: list[dict[str, float]]) -> float:
    course = _run(bench, output, shard_worker)
    stages.append({stage: _each(course.parts, stage) for stage in STAGES})
    return course.rate


def _each(parts: Sequence[PartStats], stage: str) -> float:
    """Return images per second of one worker (decode: one thread) in a stage."""
    return sum(part.counts["rows"] for part in parts) / sum(part.seconds[stage] for part in parts)


def _peer_rate(bench: Bench, output: str, setting: Setting) -> float:
    bench.notes.say(f"{PEER}: {setting}")
    sizes = bench.sizes
    skip = sizes.workers / sizes.shards
    return peer_rate(bench.job, join(bench.job.output, output), setting, sizes.shards, skip)


def job_table(facts: Mapping[str, Any]) -> str:
    """Format rates and ratios, one contender per line, followed by the settings tried for the Ray Data pipeline."""
    lines = [
        f"{facts['archive']}, {facts['shards']} shards, from {facts['store']}",
        f"{facts['bundle']}, batch {facts['batch_size']}, {facts['precision']}",
        f"{facts['workers']} workers of {facts['threads']} threads, {facts['device']}, torch {facts['torch']}",
        "set-up and each worker's first shard are not counted; medians of paired rounds",
        f"{'':28}{'images/s':>10}{'job / this':>12}",
    ]
    for name, rate in facts["images_per_second"].items():
        ratio = facts["job_by"].get(name)
        lines.append(f"{name:28}{rate:10,.1f}{'' if ratio is None else format(ratio, '12.2f')}")
        if name == JOB:
            stages = facts["job_stages"].items()
            lines += [f"{f'  {stage} ({_by(stage)})':28}{each:10,.1f}" for stage, each in stages]
    for one in facts["peers"]:
        setting = f"  tried: batch {one['batch_size']}, {one['actors']} x {one['threads']} threads"
        lines.append(f"{setting:28}{one['images_per_second']:10,.1f}")
    return "\n".join(lines)


def _by(stage: str) -> str:
    return "of one thread" if stage == "decode" else "of one worker"
