"""Turns shards into parts, one at a time. A plain class: it knows nothing of Ray and runs without it."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import torch

from gradosr.archive.image import EncodedImage, resolve_names
from gradosr.archive.loading import PreparedImage, prepared_batches
from gradosr.archive.readers import READERS
from gradosr.archive.shards import Shard
from gradosr.bundle.bundle import load_bundle
from gradosr.config import ScoreJob
from gradosr.results.folder import RunFolder
from gradosr.results.outcome import PartStats
from gradosr.results.part import STAGES, PartBuilder, Row, schema
from gradosr.scoring.rows import start_rows
from gradosr.scoring.scorer import Scorer
from gradosr.store import Store
from gradosr.versions import software

T = TypeVar("T")


class ShardWorker:
    """Scores one shard at a time: reads it, scores it, publishes one part."""

    def __init__(self, job: ScoreJob, fingerprint: Mapping[str, Any], threads: int) -> None:
        self._job, self._fingerprint, self._threads = job, dict(fingerprint), threads
        self._lock = threading.Lock()
        self._expected: Shard | None = None
        self._opened: tuple[str, _Loading] | None = None  # part of the shard that was expected
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
        coordinates = len(self._scorer.observer.coordinates) if job.representation != "none" else 0
        self._schema = schema(coordinates, self._scorer.feature_count if job.features != "none" else 0)
        return self.name

    def expect(self, shard: Shard) -> None:
        """Open this shard, which may be the one after the next, and prepare its first batches once that one is read."""
        with self._lock:
            self._expected = shard

    def process(self, shard: Shard) -> PartStats:
        """Publish the shard's part.

        Raises ShardUnreadable when nothing of it can ever be read, StoreError when the store failed.
        """
        batches, seconds, _ = self._take(shard)
        part = PartBuilder(shard, self._schema)
        try:
            rows: Callable[[], Iterable[Row]] = tuple
            for batch in batches:
                seconds["decode"] += sum(image.seconds for image in batch)
                with _Clock(seconds, "score"):  # a GPU has the next batch while the rows of the one before are written
                    before, rows = rows, start_rows(self._scorer, batch, self._job.representation, self._job.features)
                    part.add(before())
            with _Clock(seconds, "score"):
                part.add(rows())
            with _Clock(seconds, "write"):
                part.flush()
                if bad_images := part.bad_images():  # first, so that they are there when the part is
                    self._folder.put_bad_images(shard.part, bad_images)
            with _Clock(seconds, "write"):  # again: the footer cannot tell how long its own PUT took
                self._folder.put_part(shard.part, part.finish(self._footer(shard, seconds)))
        finally:
            part.close()
            self._expected = None
        return PartStats(dict(part.counts), _rounded(seconds))

    def _take(self, shard: Shard) -> "_Loading":
        """The shard on its way into memory, perhaps for a while already; another one that was expected is dropped."""
        with self._lock:
            opened, self._opened = self._opened, None
        if opened is None or opened[0] != shard.part:
            return self._load(shard)
        if opened[1].read.is_set():
            self._open_expected()
        return opened[1]

    def _load(self, shard: Shard) -> "_Loading":
        """Begin to read and decode; once all is read, the shard that is expected after this one follows."""
        seconds, read = dict.fromkeys(STAGES, 0.0), threading.Event()
        source = READERS[self._job.input.kind].read(shard, self._store, self._job.input, self._label_names)

        def images() -> Iterator[EncodedImage]:
            yield from _timed(source, seconds, "read")
            read.set()
            self._open_expected()

        transform, job = self._scorer.bundle.manifest.transform, self._job
        batches = prepared_batches(images(), transform, job.max_pixels, job.batch_size, self._threads)
        return _Loading(batches, seconds, read)

    def _open_expected(self) -> None:
        with self._lock:
            if self._expected is not None:
                self._opened, self._expected = (self._expected.part, self._load(self._expected)), None

    def _footer(self, shard: Shard, seconds: Mapping[str, float]) -> dict[str, Any]:
        return {
            "gradosr.shard": {"uri": shard.uri, "version": shard.version, "modified": shard.modified},
            "gradosr.fingerprint": self._fingerprint,
            "gradosr.seconds": _rounded(seconds),
            "gradosr.worker": self.name,
            "gradosr.software": software(),
        }


class _Loading(NamedTuple):
    """A shard on its way into memory."""

    batches: Iterator[list[PreparedImage]]
    seconds: dict[str, float]
    """By stage."""
    read: threading.Event
    """Set when all of it was read."""


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
