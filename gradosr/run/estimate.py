"""Estimate of a run's images, time and cost, from a sample of the archive scored on this machine; it writes nothing."""

import heapq
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import chain, islice

import joblib
import torch

from gradosr.archive.image import EncodedImage
from gradosr.archive.loading import PreparedImage, prepared_batches
from gradosr.archive.readers import READERS
from gradosr.archive.shards import Shard
from gradosr.bundle.bundle import load_bundle, load_detector
from gradosr.config import ResultsInput, ScoreJob, Workers
from gradosr.errors import ShardUnreadable
from gradosr.results.part import PartBuilder, schema
from gradosr.run.plan import Plan
from gradosr.scoring.columns import NOTHING_WIDE, Kept, score_images
from gradosr.scoring.embedder import load_embedder
from gradosr.scoring.rescoring import opened, rescored
from gradosr.scoring.scorer import Scorer
from gradosr.store import Store

COUNTED = 8
"""Number of shards whose images are counted, spread evenly over the pending ones."""
SCORED = 3
"""Number of shards whose beginning is scored, spread likewise."""
SECONDS = 10.0
"""Approximate seconds spent on scoring the sample."""


@dataclass(frozen=True)
class Estimate:
    """An estimate for the pending shards, without the start of Ray and its workers or the growth of a cluster."""

    images: int
    workers: int
    images_per_second: float
    """Rate of one worker."""
    planning: float
    """Seconds by which a worker's first batch exceeds later ones, because the engine measures ways to compute norms."""
    seconds: float
    """Seconds from when all workers are ready, including `planning`."""
    cost: float | None
    """Cost in the currency of price_per_hour; None if there is no price."""
    sample_images: int
    sample_shards: int
    device: str
    """Device on which the sample was scored."""
    wide_bytes: int
    """Bytes of an image's representation, features, signals and embedding where they are stored, uncompressed."""


def estimate(plan: Plan) -> Estimate | None:
    """Estimate a run by scoring a sample as a worker does, but without the PUT; None if the sample holds no image.

    Raises ConfigError for a device or precision that is not available here, InputError for errors that a run would meet
    as well.
    """
    if isinstance(plan.job.input, ResultsInput):
        return _of_rescoring(plan)
    sample = _Sample(plan)
    counted = spread(plan.pending, COUNTED)
    images_per_byte = sum(map(sample.count, counted)) / max(1, sum(shard.size for shard in counted))
    workers, threads, cores = _share(plan.job, len(plan.pending))
    scored = spread(plan.pending, SCORED)
    images, rate, planning = sample.rate(scored, threads, cores)
    if not images:
        return None
    seconds = planning + makespan([shard.size for shard in plan.pending], workers) * images_per_byte / rate
    price = plan.job.price_per_hour
    return Estimate(
        images=round(images_per_byte * sum(shard.size for shard in plan.pending)),
        workers=workers,
        images_per_second=rate,
        planning=planning,
        seconds=seconds,
        cost=None if price is None else price * workers * seconds / 3600,
        sample_images=images,
        sample_shards=len(scored),
        device=sample.device,
        wide_bytes=sample.wide_bytes,
    )


def _of_rescoring(plan: Plan) -> Estimate | None:
    """Estimate a rescoring by rescoring some parts as a worker does, but without the PUT."""
    job, store = plan.job, Store(plan.job.store, plan.job.stores)
    bundle, pending = load_detector(store, job.bundle), plan.pending
    workers, threads, _ = _share(job, len(pending))
    torch.set_num_threads(threads)
    sample = spread(pending, COUNTED)
    rows_per_byte = sum(_rows_in(store, one) for one in sample) / max(1, sum(one.size for one in sample))
    rows, start, tried = 0, time.perf_counter(), 0
    for shard in sample:
        with (
            suppress(ShardUnreadable),
            opened(store, shard) as before,
            closing(PartBuilder(shard, before.schema)) as part,
        ):
            for batch in before.rows():
                part.add(rescored(shard, batch, bundle, plan.fingerprint["precision"]))
            part.flush()
            rows, tried = rows + part.counts["rows"], tried + 1
        if time.perf_counter() - start > SECONDS:
            break
    if not rows:
        return None
    rate = rows / (time.perf_counter() - start)
    seconds = makespan([shard.size for shard in pending], workers) * rows_per_byte / rate
    cost = None if job.price_per_hour is None else job.price_per_hour * workers * seconds / 3600
    images = round(rows_per_byte * sum(shard.size for shard in pending))
    return Estimate(images, workers, rate, 0.0, seconds, cost, rows, tried, "CPU", wide_bytes=0)


def _rows_in(store: Store, part: Shard) -> int:
    with suppress(ShardUnreadable), opened(store, part) as before:
        return int(before.file.metadata.num_rows)
    return 0


def spread(shards: Sequence[Shard], count: int) -> list[Shard]:
    """Return at most `count` shards, spread evenly over the listing."""
    count = min(count, len(shards))
    return [shards[(2 * place + 1) * len(shards) // (2 * count)] for place in range(count)]


def makespan(sizes: Sequence[int], workers: int) -> int:
    """Return the total size handled by the busiest of the workers.

    Sizes are handed out in order, one at a time, each to the worker that is free first.
    """
    done = [0] * workers
    for size in sizes:
        heapq.heapreplace(done, done[0] + size)
    return max(done)


def _share(job: ScoreJob, shards: int) -> tuple[int, int, float]:
    """Return the number of workers that the driver would start, and the threads and cores of each.

    If the config leaves the number to the driver, it is that for this machine.
    """
    cores = joblib.cpu_count()
    if isinstance(job.workers, Workers):
        return min(job.workers.max, shards), max(1, min(int(job.workers.cpus), cores)), job.workers.cpus
    gpus = torch.cuda.device_count() if job.device_needed != "cpu" else 0
    workers = min(gpus or cores if job.workers == "auto" else job.workers, shards)
    return workers, max(1, cores // workers), cores / workers


class _Sample:
    """The bundle on this machine's device, and the archive."""

    def __init__(self, plan: Plan) -> None:
        self._job, self._store = plan.job, Store(plan.job.store, plan.job.stores)
        job = self._job
        self._scorer = Scorer(load_bundle(self._store, job.bundle, job.trust), job)
        self.device = self._scorer.compute.name if self._scorer.compute.on_gpu else "CPU"
        embedder = load_embedder(job, self._store, self._scorer.compute)
        kept = Kept.by(job, embedder)
        self.wide_bytes = kept.wide_bytes(self._scorer)
        self._kept = kept if embedder else NOTHING_WIDE

    def count(self, shard: Shard) -> int:
        """Return the number of images in a shard; 0 if it cannot be read."""
        with suppress(ShardUnreadable):
            return READERS[self._job.input.kind].images_in(shard, self._store, self._job.input)
        return 0

    def rate(self, shards: Sequence[Shard], threads: int, cores: float) -> tuple[int, float, float]:
        """Return the images scored (0 if there are none), a worker's images per second, and `planning` in seconds.

        `threads` and `cores` are those of one worker. A worker alone on a machine uses its idle cores for reading and
        decoding; with many workers, each has only its own.
        """
        torch.set_num_threads(threads)
        size = self._job.batch_size
        images, wanted = 0, 2 * size
        start = time.perf_counter()
        first = self._score(shards, size, threads)
        first_spent = time.perf_counter() - start
        if not first:
            return 0, 0.0, 0.0
        while True:
            start, busy = time.perf_counter(), time.process_time()
            scored = self._score(shards, wanted, threads)
            spent, busy = time.perf_counter() - start, time.process_time() - busy
            if spent > SECONDS / 2 or scored <= images:
                planning = max(0.0, first_spent - first * spent / scored)
                return scored, min(scored / spent, scored * cores / busy), planning
            images, wanted = scored, size * max(1, round(scored / spent * SECONDS / size))

    def _score(self, shards: Sequence[Shard], count: int, threads: int) -> int:
        """Score the first `count` images, equally many per shard, into a part that is not published; count its rows."""
        part = PartBuilder(shards[0], schema(self._kept.widths(self._scorer)))
        try:
            for batch in self._batches(shards, count, threads):
                part.add(score_images(self._scorer, batch, self._kept))
            part.flush()
        finally:
            part.close()
        return part.counts["rows"]

    def _batches(self, shards: Sequence[Shard], count: int, threads: int) -> Iterator[list[PreparedImage]]:
        each = -(-count // len(shards))
        images = islice(chain.from_iterable(self._images(shard, each) for shard in shards), count)
        transform, job = self._scorer.bundle.manifest.transform, self._job
        return prepared_batches(images, transform, job.max_pixels, job.batch_size, threads, self._kept.beside)

    def _images(self, shard: Shard, count: int) -> Iterator[EncodedImage]:
        with suppress(ShardUnreadable):
            yield from islice(READERS[self._job.input.kind].read(shard, self._store, self._job.input, None), count)
