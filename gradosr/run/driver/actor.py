"""A worker's process on Ray. The driver names the worker by a function alone, and so does not import torch."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import ray

from gradosr.archive.shards import Shard
from gradosr.config import ScoreJob
from gradosr.results.outcome import PartStats


class Worker(Protocol):
    """Turns shards into parts."""

    def ready(self) -> object:
        """Load everything."""

    def expect(self, shard: Shard) -> None:
        """Told before `process`: which shard may come after the one that comes next."""

    def process(self, shard: Shard) -> PartStats:
        """Publish the shard's part."""


MakeWorker = Callable[[ScoreJob, Mapping[str, Any], int], Worker]
"""Of job, fingerprint and number of threads."""


def shard_worker(job: ScoreJob, fingerprint: Mapping[str, Any], threads: int) -> Worker:
    """The worker of a scoring run."""
    from gradosr.scoring.worker import ShardWorker

    return ShardWorker(job, fingerprint, threads)


class WorkerActor:
    """Makes its worker in `ready`: a failing constructor would hide its cause from Ray."""

    def __init__(self, make: MakeWorker, job: ScoreJob, fingerprint: Mapping[str, Any], threads: int) -> None:
        self._make, self._given = make, (job, fingerprint, threads)

    def node(self) -> str:
        """Ray's name of the node."""
        return ray.get_runtime_context().get_node_id()

    def ready(self) -> None:
        """What the worker raises."""
        self._worker = self._make(*self._given)
        self._worker.ready()

    def process(self, shard: Shard, following: Shard | None) -> PartStats:
        """What the worker answers or raises."""
        if following is not None:
            self._worker.expect(following)
        return self._worker.process(shard)
