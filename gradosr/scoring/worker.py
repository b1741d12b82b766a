"""Turns shards into parts: reads the next shard while one is scored, and publishes the last one meanwhile.

Plain classes: they run without Ray.
"""

import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa
import torch

from gradosr.archive.image import EncodedImage, check_decoder, resolve_names
from gradosr.archive.loading import Prefetcher, PreparedImage, prepared_batches
from gradosr.archive.readers import READERS
from gradosr.archive.shards import Shard
from gradosr.bundle.bundle import load_bundle
from gradosr.classifier.sources import identity
from gradosr.config import ScoreJob
from gradosr.errors import InputError
from gradosr.results.folder import RunFolder
from gradosr.results.outcome import PartStats, Underway
from gradosr.results.part import STAGES, PartBuilder, schema
from gradosr.scoring.clock import Clock, rounded, timed
from gradosr.scoring.columns import Kept, start_scoring
from gradosr.scoring.embedder import Embedder, load_embedder
from gradosr.scoring.scorer import Scorer
from gradosr.store import Store
from gradosr.versions import software

NOTHING = Underway(0, 0)


class ShardWorker:
    """Scores one shard at a time: reads it, scores it, and lets its part be published while the next one is scored."""

    def __init__(self, job: ScoreJob, fingerprint: Mapping[str, Any], threads: int) -> None:
        self._job, self._fingerprint, self._threads = job, dict(fingerprint), threads
        self._prefetch = Prefetch(self._load)
        self._underway: dict[str, Underway] = {}
        self.name = f"{socket.gethostname()}:{os.getpid()}"

    def underway(self) -> dict[str, Underway]:
        """Return how far the shards at work are, by part name; may be called on another thread."""
        return dict(self._underway)

    def ready(self) -> str:
        """Load everything and return the worker's name.

        Raises FingerprintMismatch, BundleError, ClassifierError, ConfigError, InputError, StoreError or MachineFault.
        """
        torch.set_num_threads(self._threads)
        job, self._store = self._job, Store(self._job.store, self._job.stores)
        self._folder = RunFolder(self._store, job.output)
        self._folder.check(self._fingerprint)
        check_decoder(self._fingerprint["decoder"])
        self._label_names = resolve_names(job.input.label_names, self._store)
        bundle = load_bundle(self._store, job.bundle, job.trust)
        self._scorer = Scorer(bundle, job, every_norm=job.representation != "none")
        self._kept = Kept.by(job, self._embedder())
        self._schema = schema(self._kept.widths(self._scorer))
        return self.name

    def _embedder(self) -> Embedder | None:
        job = self._job
        if job.embedder is not None and identity(job.embedder, self._store) != self._fingerprint["embedder"]:
            raise InputError("embedder: its files are others than when the run began; put those back, or start anew")
        return load_embedder(job, self._store, self._scorer.compute)

    def expect(self, shard: Shard) -> None:
        """Prefetch this shard during the next `score`, once all of that call's shard is read."""
        self._prefetch.announce(shard)

    def score(self, shard: Shard) -> Callable[[], PartStats]:
        """Score a shard, and return the function that publishes its part, to be called once and on any thread.

        The next shard may be scored meanwhile. Raises ShardUnreadable when nothing of it can ever be read, and, as the
        returned function does, StoreError when the store failed and MachineFault when this machine did.
        """
        loading, part = self._take(shard), PartBuilder(shard, self._schema)
        seconds = loading.seconds
        try:
            rows: Callable[[], pa.RecordBatch] | None = None
            for batch in loading.batches:
                seconds["decode"] += sum(image.seconds for image in batch)
                with Clock(seconds, "score"):  # a GPU has the next batch while the rows of the one before are written
                    before = rows
                    rows = start_scoring(self._scorer, batch, self._kept)
                    if before:
                        part.add(before())
                images, size = self._underway.get(shard.part, NOTHING)
                size += sum(loading.sizes.popleft() for _ in batch)
                self._underway[shard.part] = Underway(images + len(batch), size)
            with Clock(seconds, "score"):
                if rows:
                    part.add(rows())
        except BaseException:
            self._underway.pop(shard.part, None)
            part.close()
            raise
        finally:
            loading.batches.close()
            self._prefetch.end_turn()
        return partial(self._publish, loading, part)

    def _publish(self, loading: "Loading", part: PartBuilder) -> PartStats:
        """Encode and put a part whose rows are complete."""
        name, seconds = loading.shard.part, loading.seconds
        try:
            with Clock(seconds, "write"):
                part.flush()
                if bad_images := part.bad_images():  # first, so that they are there when the part is
                    self._folder.put_bad_images(name, bad_images)
            with Clock(seconds, "write"):  # again: the footer cannot tell how long its own PUT took
                self._folder.put_part(name, part.finish(self._footer(loading)))
        finally:
            self._underway.pop(name, None)
            part.close()
        return PartStats(dict(part.counts), rounded(seconds), loading.passed_over)

    def _take(self, shard: Shard) -> "Loading":
        """Return the shard on its way into memory: as prefetched, else begun now. The caller closes its batches."""
        return self._prefetch.take(shard)

    def _load(self, shard: Shard) -> "Loading":
        """Begin to read and decode a shard; once all of it is read, the announced one may be prefetched."""
        seconds, read, passed_over = dict.fromkeys(STAGES, 0.0), threading.Event(), dict[str, int]()
        sizes = deque[int]()
        source = READERS[self._job.input.kind].read(shard, self._store, self._job.input, self._label_names)

        def images() -> Iterator[EncodedImage]:
            passed_over.update((yield from _measured(timed(source, seconds, "read"), sizes)) or {})
            read.set()
            self._prefetch.start()

        transform, beside, job = self._scorer.bundle.manifest.transform, self._kept.beside, self._job
        batches = prepared_batches(images(), transform, job.max_pixels, job.batch_size, self._threads, beside)
        return Loading(shard, batches, seconds, read, passed_over, sizes)

    def _footer(self, loading: "Loading") -> dict[str, Any]:
        shard = loading.shard
        return {
            "gradosr.shard": {"uri": shard.uri, "version": shard.version, "modified": shard.modified},
            "gradosr.fingerprint": self._fingerprint,
            "gradosr.seconds": rounded(loading.seconds),
            "gradosr.passed_over": loading.passed_over,
            "gradosr.worker": self.name,
            "gradosr.software": software(),
        }


class Loading(NamedTuple):
    """A shard on its way into memory."""

    shard: Shard
    batches: Prefetcher[list[PreparedImage]]
    """Prepared images; closing this ends the loading."""
    seconds: dict[str, float]
    """Seconds by stage."""
    read: threading.Event
    """Event set when all of the shard is read."""
    passed_over: dict[str, int]
    """Number of members that are no images, by kind; filled in when all of the shard is read."""
    sizes: deque[int]
    """Encoded bytes of the images that are read and not scored yet, in order."""


def _measured(images: Generator[EncodedImage, None, Any], sizes: deque[int]) -> Generator[EncodedImage, None, Any]:
    """Yield the images and return what their iterator returns; append the bytes of each."""
    while True:
        try:
            image = next(images)
        except StopIteration as end:
            return end.value
        sizes.append(len(image.data))
        yield image


class Prefetch:
    """Opens one shard ahead of its turn, once all of the shard at work is read. Thread-safe.

    The worker owns and closes what it takes. Until then the prefetched shard is owned here, and closed when the worker
    takes another one instead.
    """

    def __init__(self, load: Callable[[Shard], Loading]) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._announced: Shard | None = None  # to be opened
        self._opened: Loading | None = None  # ahead of its turn
        self._current: Loading | None = None  # taken, at work

    def announce(self, shard: Shard) -> None:
        """Name the shard to open ahead, which probably follows the one taken next."""
        with self._lock:
            self._announced = shard

    def take(self, shard: Shard) -> Loading:
        """Return the loading of a shard, which is begun now unless it was prefetched; another one is closed.

        To close one waits for its thread, a few seconds at most: it may be in the middle of a read from the store.
        """
        with self._lock:
            opened, self._opened, self._current = self._opened, None, None
        prefetched = opened is not None and opened.shard.part == shard.part
        taken = opened if opened is not None and prefetched else self._load(shard)
        with self._lock:
            self._current = taken
        if opened is not None and not prefetched:
            opened.batches.close()
        self.start()
        return taken

    def start(self) -> None:
        """Open the announced shard, if all of the one at work is read and no other is open."""
        with self._lock:
            if self._announced and self._current and self._current.read.is_set() and not self._opened:
                shard, self._announced = self._announced, None
                self._opened = self._load(shard)

    def end_turn(self) -> None:
        """Forget the shard at work, and the announced one unless it is open by now."""
        with self._lock:
            self._announced = self._current = None
