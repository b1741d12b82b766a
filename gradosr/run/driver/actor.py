"""The process of a worker on Ray. The driver names the worker by a function alone, and so does not import torch."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import ray

from gradosr.archive.shards import Shard
from gradosr.config import ResultsInput, ScoreJob
from gradosr.results.outcome import PartStats, Underway


class Worker(Protocol):
    """Turns shards into parts."""

    def ready(self) -> object:
        """Load everything."""

    def expect(self, shard: Shard) -> None:
        """Learn, before `score`, which shard to prefetch: it probably comes after the one scored next."""

    def score(self, shard: Shard) -> Callable[[], PartStats]:
        """Score a shard; return the function that publishes its part, on another thread while the next is scored."""

    def underway(self) -> Mapping[str, Underway]:
        """Return how far the shards at work are, by part name; asked on another thread."""


MakeWorker = Callable[[ScoreJob, Mapping[str, Any], int], Worker]
"""Function that makes a worker from a job, a fingerprint and a number of threads."""


def shard_worker(job: ScoreJob, fingerprint: Mapping[str, Any], threads: int) -> Worker:
    """Make the worker of a scoring run."""
    if isinstance(job.input, ResultsInput):
        from gradosr.scoring.rescoring import RescoringWorker

        return RescoringWorker(job, fingerprint, threads)
    from gradosr.scoring.worker import ShardWorker

    return ShardWorker(job, fingerprint, threads)


PUBLISHING = "publish"
"""Ray's concurrency group of one thread that publishes, beside the one that scores."""
TELLING = "tell"
"""Ray's concurrency group of one thread that tells how far the work is."""


class WorkerActor:
    """Makes its worker in `ready`: a failing constructor would hide its cause from Ray."""

    def __init__(self, make: MakeWorker, job: ScoreJob, fingerprint: Mapping[str, Any], threads: int) -> None:
        self._make, self._given = make, (job, fingerprint, threads)
        self._scored: dict[str, Callable[[], PartStats]] = {}

    def node(self) -> str:
        """Return Ray's name of the node."""
        return ray.get_runtime_context().get_node_id()

    def ready(self) -> None:
        """Load the worker; raise what it raises."""
        self._worker = self._make(*self._given)
        self._worker.ready()

    def score(self, shard: Shard, prefetch: Shard | None) -> None:
        """Let the worker score `shard` while it prefetches the other; raise what it raises."""
        if prefetch is not None:
            self._worker.expect(prefetch)
        self._scored[shard.part] = self._worker.score(shard)

    def underway(self) -> Mapping[str, Underway]:
        """Tell how far the shards at work are, by part name."""
        return self._worker.underway()

    def publish(self, part: str) -> PartStats:
        """Publish the part of a shard that was scored; raise what the worker raises."""
        return self._scored.pop(part)()
