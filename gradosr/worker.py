"""Turns shards into parts, one at a time. A plain class: it knows nothing of Ray and runs without it."""

import os
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch

from gradosr.bundle import load_bundle
from gradosr.config import ScoreJob
from gradosr.loading import PreparedImage, prepared_batches
from gradosr.parts import STAGES, PartBuilder, schema, software
from gradosr.progress import PartStats
from gradosr.readers import READERS, resolve_names
from gradosr.results import RunFolder
from gradosr.rows import scored_rows
from gradosr.scorer import Scorer
from gradosr.shards import Shard
from gradosr.store import Store

T = TypeVar("T")


class ShardWorker:
    """Scores one shard at a time: reads it, scores it, publishes one part."""

    def __init__(self, job: ScoreJob, fingerprint: Mapping[str, Any], threads: int) -> None:
        self._job, self._fingerprint, self._threads = job, dict(fingerprint), threads
        self.name = f"{socket.gethostname()}:{os.getpid()}"

    def ready(self) -> str:
        """Load everything; the worker's name.

        Raises FingerprintMismatch, BundleError, ClassifierError, ConfigError or StoreError.
        """
        torch.set_num_threads(self._threads)
        job, self._store = self._job, Store(self._job.store, self._job.stores)
        self._folder = RunFolder(self._store, job.output)
        self._folder.check(self._fingerprint)
        self._label_names = resolve_names(job.input.label_names, self._store)
        bundle = load_bundle(self._store, job.bundle, job.trust)
        self._scorer = Scorer(bundle, job.device, job.precision, job.max_memory)
        self._manifest = self._scorer.bundle.manifest
        coordinates = len(self._scorer.observer.coordinates) if job.representation != "none" else 0
        self._schema = schema(coordinates, self._scorer.feature_count if job.features != "none" else 0)
        return self.name

    def process(self, shard: Shard) -> PartStats:
        """Publish the shard's part.

        Raises ShardUnreadable when nothing of it can ever be read, StoreError when the store failed.
        """
        seconds = dict.fromkeys(STAGES, 0.0)
        part = PartBuilder(shard, self._schema)
        try:
            for batch in self._batches(shard, seconds):
                seconds["decode"] += sum(image.seconds for image in batch)
                with _Clock(seconds, "score"):
                    part.add(scored_rows(self._scorer, batch, self._job.representation, self._job.features))
            with _Clock(seconds, "write"):
                part.flush()
                if bad_images := part.bad_images():  # first, so that they are there when the part is
                    self._folder.put_bad_images(shard.part, bad_images)
            with _Clock(seconds, "write"):  # again: the footer cannot tell how long its own PUT took
                self._folder.put_part(shard.part, part.finish(self._footer(shard, seconds)))
        finally:
            part.close()
        return PartStats(dict(part.counts), _rounded(seconds))

    def _batches(self, shard: Shard, seconds: dict[str, float]) -> Iterator[list[PreparedImage]]:
        images = READERS[self._job.input.kind].read(shard, self._store, self._job.input, self._label_names)
        transform, max_pixels = self._manifest.transform, self._job.max_pixels
        images = _timed(images, seconds, "read")
        return prepared_batches(images, transform, max_pixels, self._job.batch_size, self._threads)

    def _footer(self, shard: Shard, seconds: Mapping[str, float]) -> dict[str, Any]:
        return {
            "gradosr.shard": {"uri": shard.uri, "version": shard.version},
            "gradosr.fingerprint": self._fingerprint,
            "gradosr.seconds": _rounded(seconds),
            "gradosr.worker": self.name,
            "gradosr.software": software(),
        }


class _Clock:
    """Adds the seconds spent in its block to a stage."""

    def __init__(self, seconds: dict[str, float], stage: str) -> None:
        self._seconds, self._stage = seconds, stage

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._seconds[self._stage] += time.perf_counter() - self._start


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    """To a tenth of a millisecond: a hundred thousand parts are listed in one stats.json."""
    return {stage: round(spent, 4) for stage, spent in seconds.items()}


def _timed(items: Iterator[T], seconds: dict[str, float], stage: str) -> Iterator[T]:
    end = object()
    while True:
        with _Clock(seconds, stage):
            item = next(items, end)
        if item is end:
            return
        yield item  # type: ignore[misc]
