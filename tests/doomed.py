"""Workers that really die, hang or fail, at places the tests choose."""

import os
import signal
import time
from pathlib import Path

from gradosr.progress import PartStats
from gradosr.shards import Shard
from gradosr.worker import ShardWorker


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class KilledOnce(ShardWorker):
    """The first worker that takes 00001.tar dies in the middle of it, after it was read and scored."""

    def process(self, shard: Shard) -> PartStats:
        mark = Path(self._job.output).parent / "killed"
        if shard.name == "00001.tar" and not mark.exists():
            mark.touch()
            self._folder.put_part = lambda *_: _kill()
        return super().process(shard)


class Poisoned(ShardWorker):
    """00001.tar kills every worker that takes it."""

    def process(self, shard: Shard) -> PartStats:
        if shard.name == "00001.tar":
            _kill()
        return super().process(shard)


class Hanging(ShardWorker):
    """00001.tar never ends."""

    def process(self, shard: Shard) -> PartStats:
        while shard.name == "00001.tar":
            time.sleep(0.1)
        return super().process(shard)


class Faulty(ShardWorker):
    """A bug of ours meets 00001.tar."""

    def process(self, shard: Shard) -> PartStats:
        if shard.name == "00001.tar":
            raise ZeroDivisionError("a bug")
        return super().process(shard)


class DyingAtStart(ShardWorker):
    """Never becomes ready."""

    def ready(self) -> str:
        _kill()
        return ""


class Slow(ShardWorker):
    """Takes its time over every shard, so that a test can kill what it wants to."""

    def process(self, shard: Shard) -> PartStats:
        time.sleep(0.5)
        return super().process(shard)


class Eating(ShardWorker):
    """Dies over every shard on a node of this environment, and takes its time on others."""

    def process(self, shard: Shard) -> PartStats:
        if "GRADOSR_TEST_EATING" in os.environ:
            _kill()
        time.sleep(2)
        return super().process(shard)


class Straggling(ShardWorker):
    """The first worker that takes 00001.tar never ends; the next one does."""

    def process(self, shard: Shard) -> PartStats:
        mark = Path(self._job.output).parent / "taken"
        if shard.name == "00001.tar" and not mark.exists():
            mark.touch()
            time.sleep(3600)
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
