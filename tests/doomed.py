"""Workers that really die, hang or fail, at places the tests choose."""

import os
import signal
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from gradosr.archive.readers import READERS
from gradosr.archive.shards import Shard
from gradosr.config import ScoreJob
from gradosr.errors import ClassifierError
from gradosr.results.folder import RunFolder
from gradosr.results.outcome import PartStats
from gradosr.results.part import PartBuilder, schema
from gradosr.store import Store

ROW = pa.schema([schema().field(name) for name in ("key", "status", "unknown_score")])
GORGED = 3 << 30
"""Bytes that Gorging takes at most."""


class Quick:
    """Reads and publishes as the true worker does; its scores are checksums, so that it need not import torch."""

    def __init__(self, job: ScoreJob, fingerprint: Mapping[str, Any], _threads: int) -> None:
        self._job, self._fingerprint, self._store = job, fingerprint, Store(job.store, job.stores)
        self._folder = RunFolder(self._store, job.output)

    def ready(self) -> None:
        self._folder.check(self._fingerprint)

    def expect(self, shard: Shard) -> None:
        """Prefetch nothing."""

    def process(self, shard: Shard) -> PartStats:
        part = PartBuilder(shard, schema())
        images = READERS[self._job.input.kind].read(shard, self._store, self._job.input, None)
        rows = [{"key": one.key, "status": "ok", "unknown_score": zlib.crc32(one.data) / 2**32} for one in images]
        part.add(pa.RecordBatch.from_pylist(rows, ROW))
        part.flush()
        self._folder.put_part(shard.part, part.finish({"gradosr.seconds": {}}))
        part.close()
        return PartStats(dict(part.counts), {})


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class KilledOnce(Quick):
    """The first worker that takes 00001.tar dies in the middle of it, when all but its PUT is done."""

    def process(self, shard: Shard) -> PartStats:
        mark = Path(self._job.output).parent / "killed"
        if shard.name == "00001.tar" and not mark.exists():
            mark.touch()
            self._folder.put_part = lambda *_: _kill()
        return super().process(shard)


class Poisoned(Quick):
    """00001.tar kills every worker that takes it."""

    def process(self, shard: Shard) -> PartStats:
        if shard.name == "00001.tar":
            _kill()
        return super().process(shard)


class PoisonedAhead(Quick):
    """00001.tar kills every worker that prefetches it, and is harmless when its turn comes."""

    def expect(self, shard: Shard) -> None:
        self._deadly = shard.name == "00001.tar"

    def process(self, shard: Shard) -> PartStats:
        if getattr(self, "_deadly", False):
            _kill()
        return super().process(shard)


class Hanging(Quick):
    """00001.tar never ends; `hanging` lies beside the results once it began."""

    def process(self, shard: Shard) -> PartStats:
        while shard.name == "00001.tar":
            (Path(self._job.output).parent / "hanging").touch()
            time.sleep(0.1)
        return super().process(shard)


class Faulty(Quick):
    """A bug of ours meets 00001.tar."""

    def process(self, shard: Shard) -> PartStats:
        if shard.name == "00001.tar":
            raise ZeroDivisionError("a bug")
        return super().process(shard)


class DyingAtStart(Quick):
    """Never becomes ready."""

    def ready(self) -> None:
        _kill()


class Held(Quick):
    """Begins every shard, and finishes none before the test puts `go` beside the results."""

    def process(self, shard: Shard) -> PartStats:
        while not (Path(self._job.output).parent / "go").exists():
            time.sleep(0.05)
        return super().process(shard)


class Eating(Held):
    """Dies over every shard on a node of this environment."""

    def process(self, shard: Shard) -> PartStats:
        if "GRADOSR_TEST_EATING" in os.environ:
            _kill()
        return super().process(shard)


class Unloadable(Held):
    """Cannot load on a node of this environment."""

    def ready(self) -> None:
        if "GRADOSR_TEST_UNLOADABLE" in os.environ:
            raise ClassifierError("lacks a driver")
        super().ready()


class Straggling(Quick):
    """The first worker that takes 00001.tar never ends; the next one does."""

    def process(self, shard: Shard) -> PartStats:
        mark = Path(self._job.output).parent / "taken"
        if shard.name == "00001.tar" and not mark.exists():
            mark.touch()
            time.sleep(3600)  # beyond the test, which ends it with its Ray
        return super().process(shard)


class Gorging(Quick):
    """The first worker that takes 00001.tar takes memory until it is evicted; `full` tells that nobody evicted it."""

    def process(self, shard: Shard) -> PartStats:
        folder, held = Path(self._job.output).parent, []
        if shard.name == "00001.tar" and not (folder / "gorging").exists():
            (folder / "gorging").touch()
            for _ in range(GORGED >> 26):
                held.append(bytearray(b"x" * (1 << 26)))  # written to, or it is not there
                time.sleep(0.02)
            (folder / "full").touch()
        return super().process(shard)


class Noted:
    """Keeps what the driver says."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.fates: list[tuple[str, str, str]] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def lost(self, shard: str, fate: str, reason: str) -> None:
        self.fates.append((shard, fate, reason))
