"""Workers that really die, hang or fail, at places the tests choose."""

import os
import signal
import time
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import pyarrow as pa

from gradosr.archive.readers import READERS
from gradosr.archive.shards import Shard
from gradosr.config import ScoreJob
from gradosr.errors import ClassifierError, StoreError
from gradosr.results.folder import RunFolder
from gradosr.results.outcome import PartStats, Underway
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

    def underway(self) -> dict[str, Underway]:
        """Tell nothing."""
        return {}

    def score(self, shard: Shard) -> Callable[[], PartStats]:
        part = PartBuilder(shard, schema())
        images = READERS[self._job.input.kind].read(shard, self._store, self._job.input, None)
        rows = [{"key": one.key, "status": "ok", "unknown_score": zlib.crc32(one.data) / 2**32} for one in images]
        part.add(pa.RecordBatch.from_pylist(rows, ROW))
        return lambda: self._publish(shard, part)

    def _publish(self, shard: Shard, part: PartBuilder) -> PartStats:
        self._folder.put_part(shard.part, part.finish({"gradosr.seconds": {}}))
        part.close()
        return PartStats(dict(part.counts), {})


class Slow(Quick):
    """Tells how far it is with 00001.tar, and goes on with it once `seen` lies beside the results."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._at = ""

    def underway(self) -> dict[str, Underway]:
        return {self._at: Underway(3, 10**9)} if self._at else {}

    def score(self, shard: Shard) -> Callable[[], PartStats]:
        if shard.name == "00001.tar":
            self._at = shard.part
            while not (Path(self._job.output).parent / "seen").exists():
                time.sleep(0.02)
        return super().score(shard)


def _kill() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)


class KilledOnce(Quick):
    """The first worker that takes 00001.tar dies in the middle of it, when all but its PUT is done."""

    def score(self, shard: Shard) -> Callable[[], PartStats]:
        mark = Path(self._job.output).parent / "killed"
        if shard.name == "00001.tar" and not mark.exists():
            mark.touch()
            return _kill
        return super().score(shard)


class Poisoned(Quick):
    """00001.tar kills every worker that takes it."""

    def score(self, shard: Shard) -> Callable[[], PartStats]:
        if shard.name == "00001.tar":
            _kill()
        return super().score(shard)


class PoisonedAhead(Quick):
    """00001.tar kills every worker that prefetches it, and is harmless when its turn comes."""

    def expect(self, shard: Shard) -> None:
        self._deadly = shard.name == "00001.tar"

    def score(self, shard: Shard) -> Callable[[], PartStats]:
        if getattr(self, "_deadly", False):
            _kill()
        return super().score(shard)


class Hanging(Quick):
    """00001.tar never ends; `hanging` lies beside the results once it began."""

    def score(self, shard: Shard) -> Callable[[], PartStats]:
        while shard.name == "00001.tar":
            (Path(self._job.output).parent / "hanging").touch()
            time.sleep(0.1)
        return super().score(shard)


class Faulty(Quick):
    """A bug of ours meets 00001.tar."""

    def score(self, shard: Shard) -> Callable[[], PartStats]:
        if shard.name == "00001.tar":
            raise ZeroDivisionError("a bug")
        return super().score(shard)


class DyingAtStart(Quick):
    """Never becomes ready."""

    def ready(self) -> None:
        _kill()


class Held(Quick):
    """Begins every shard, and finishes none before the test puts `go` beside the results."""

    def score(self, shard: Shard) -> Callable[[], PartStats]:
        while not (Path(self._job.output).parent / "go").exists():
            time.sleep(0.05)
        return super().score(shard)


class Eating(Held):
    """Dies over every shard on a node of this environment."""

    def score(self, shard: Shard) -> Callable[[], PartStats]:
        if "GRADOSR_TEST_EATING" in os.environ:
            _kill()
        return super().score(shard)


class Unloadable(Held):
    """Cannot load on a node of this environment."""

    def ready(self) -> None:
        if "GRADOSR_TEST_UNLOADABLE" in os.environ:
            raise ClassifierError("lacks a driver")
        super().ready()


class Straggling(Quick):
    """The first worker that takes 00001.tar never ends; the next one does."""

    def score(self, shard: Shard) -> Callable[[], PartStats]:
        mark = Path(self._job.output).parent / "taken"
        if shard.name == "00001.tar" and not mark.exists():
            mark.touch()
            time.sleep(3600)  # beyond the test, which ends it with its Ray
        return super().score(shard)


class Gorging(Quick):
    """The first worker that takes 00001.tar takes memory until it is evicted; `full` tells that nobody evicted it."""

    def score(self, shard: Shard) -> Callable[[], PartStats]:
        folder, held = Path(self._job.output).parent, []
        if shard.name == "00001.tar" and not (folder / "gorging").exists():
            (folder / "gorging").touch()
            for _ in range(GORGED >> 26):
                held.append(bytearray(b"x" * (1 << 26)))  # written to, or it is not there
                time.sleep(0.02)
            (folder / "full").touch()
        return super().score(shard)


class Overlapping(Quick):
    """The part of 00000.tar is put only once 00001.tar was scored; `begun-NAME` beside the results tells what was."""

    def score(self, shard: Shard) -> Callable[[], PartStats]:
        (self._folder_beside / f"begun-{shard.name}").touch()
        publish = super().score(shard)
        (self._folder_beside / f"scored-{shard.name}").touch()
        return partial(self._after, publish) if shard.name == "00000.tar" else publish

    def _after(self, publish: Callable[[], PartStats]) -> PartStats:
        until = time.monotonic() + 60
        while not (self._folder_beside / "scored-00001.tar").exists():
            if time.monotonic() > until:
                raise TimeoutError("00001.tar is not scored meanwhile")
            time.sleep(0.02)
        if (self._folder_beside / "begun-00002.tar").exists():
            raise RuntimeError("two parts are in memory while a third is made")
        return publish()

    @property
    def _folder_beside(self) -> Path:
        return Path(self._job.output).parent


class FailingPut(Overlapping):
    """The store takes all parts but that of 00000.tar, which fails when 00001.tar was scored."""

    def _after(self, publish: Callable[[], PartStats]) -> PartStats:
        self._folder.put_part = self._refuse
        return super()._after(publish)

    def _refuse(self, part: str, body: BinaryIO) -> None:
        del self._folder.put_part
        raise StoreError(f"{part}: the store is away")


class KilledWithTwo(Overlapping):
    """The first worker dies when the part of 00000.tar is on its way and 00001.tar is scored."""

    def _after(self, publish: Callable[[], PartStats]) -> PartStats:
        mark = self._folder_beside / "killed"
        if not mark.exists():
            mark.touch()
            super()._after(_kill)
        return publish()


class Noted:
    """Keeps what the driver says."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.fates: list[tuple[str, str, str]] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def lost(self, shard: str, fate: str, reason: str) -> None:
        self.fates.append((shard, fate, reason))
