"""Decides which worker gets which shard: the waiting shards in order, prefetch, and a second try for stragglers."""

import statistics
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from gradosr.archive.shards import Shard
from gradosr.run.driver.faults import FaultLedger

STRAGGLING = 3.0  # times the usual seconds of a shard of its size, before an idle worker takes it as well
STRAGGLER_SECONDS = 10.0  # at least


@dataclass(eq=False)
class Turn:
    """A shard in the hands of one worker, until its part is published."""

    shard: Shard
    since: float
    """Time at which the worker got it, by the driver's clock."""
    scored: bool = False
    """True once only its part has to be published."""


@dataclass(eq=False)
class WorkerHandle:
    """An actor and what it is doing: being placed on a node, loading, idle, or working on shards."""

    actor: Any
    since: float
    """Time at which it began to be placed or to load, by the driver's clock."""
    node: str = ""
    """Ray's name of its node; empty until it is placed."""
    ready: bool = False
    """True once it has loaded."""
    turns: list[Turn] = field(default_factory=list)
    """Shards this worker is working on, at most two: one is scored while the part of the one before is published."""
    prefetched: Shard | None = None
    """Shard this worker prefetches; usually its next assignment, and until then a waiting shard like others."""

    @property
    def free(self) -> bool:
        """Whether it can take a shard: it scores none, and at most one part waits to be published."""
        return self.ready and len(self.turns) < 2 and all(turn.scored for turn in self.turns)


class HandOut:
    """Waiting shards of a run, and the rules by which ready workers get them."""

    def __init__(self, shards: Sequence[Shard], faults: FaultLedger) -> None:
        self.waiting = deque(shards)
        """Shards that no worker is working on."""
        self._faults = faults
        self._pace = deque[float](maxlen=100)  # seconds per byte of the shards scored last

    def put_back(self, shard: Shard) -> None:
        """Let a shard wait again, behind all others."""
        self.waiting.append(shard)

    def note_pace(self, shard: Shard, seconds: float) -> None:
        """Note how long a scored shard took."""
        self._pace.append(seconds / max(shard.size, 1))

    def assign(self, worker: WorkerHandle, ready: Sequence[WorkerHandle], now: float) -> Turn | None:
        """Give a free worker a waiting shard and one to prefetch; return None where no waiting shard is for it yet."""
        if any(turn.shard.part in self._faults.suspects for turn in worker.turns):
            return None
        prefetched, worker.prefetched = worker.prefetched, None
        shard = prefetched or self._choose(worker, ready)
        if shard is None:
            return None
        self.waiting.remove(shard)
        for other in ready:
            if other.prefetched is shard:
                other.prefetched = None
        worker.turns.append(turn := Turn(shard, now))
        worker.prefetched = self._choose_prefetch(shard, ready)
        return turn

    def straggler(self, running: Sequence[Turn], now: float) -> tuple[Shard, float] | None:
        """Return the shard that is longest beyond what its size explains, and its seconds so far.

        Only one that a single worker is working on: it is run once more, and the first part counts.
        """
        usual = statistics.median(self._pace) if self._pace else float("inf")
        copies = Counter(turn.shard.part for turn in running)
        late = []
        for turn in running:
            shard, took = turn.shard, now - turn.since
            if copies[shard.part] == 1 and took > max(STRAGGLER_SECONDS, STRAGGLING * usual * shard.size):
                late.append((shard, took))
        return max(late, key=lambda one: one[1], default=None)

    def _choose(self, worker: WorkerHandle, ready: Sequence[WorkerHandle]) -> Shard | None:
        """Return the first shard this worker may try that no other one prefetches, else the first it may try.

        Suspects wait until the part before them is published.
        """
        nodes, taken = {other.node for other in ready}, _prefetched(ready)
        barred = self._faults.suspects if worker.turns else set[str]()

        def suited() -> Iterator[Shard]:
            waiting = (shard for shard in self.waiting if shard.part not in barred)
            return (shard for shard in waiting if self._faults.may_try(shard.part, worker.node, nodes))

        free = (shard for shard in suited() if shard.part not in taken)
        return next(free, None) or next(suited(), None)

    def _choose_prefetch(self, shard: Shard, ready: Sequence[WorkerHandle]) -> Shard | None:
        """Return the first waiting shard that no worker prefetches; none beside or among suspects."""
        if shard.part in self._faults.suspects:
            return None
        taken = self._faults.suspects | _prefetched(ready)
        return next((waiting for waiting in self.waiting if waiting.part not in taken), None)


def _prefetched(workers: Iterable[WorkerHandle]) -> set[str]:
    """Collect the parts of the shards that workers prefetch."""
    return {worker.prefetched.part for worker in workers if worker.prefetched}
