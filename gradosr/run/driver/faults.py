"""Counts the faults of a run and decides what follows. It is told facts and answers decisions: no Ray and no clock.

A worker failure counts against the shard the worker was working on and against its node; the loss of a whole node
counts against neither. A worker that failed with other shards open, one prefetched or one whose part was being
published, may have failed over any of them: no attempt is counted, and from then on each is worked on alone.
"""

from collections import Counter, defaultdict
from collections.abc import Collection
from typing import Literal, NamedTuple

from gradosr.errors import RunFailed

LOAD_FAILURES = 3  # workers in a row that may fail to load on one node before it is avoided
NODE_FAILURES = 3  # shards in a row whose workers failed on one node before it is avoided
NODE_LOSSES = 10  # nodes that may be lost under one shard before this run gives it up


class ShardDecision(NamedTuple):
    """A shard whose worker failed: retried, quarantined or failed."""

    action: Literal["retry", "quarantine", "fail"]
    reason: str = ""
    """Text for the user; empty for a retry."""
    attempts: int = 0
    """Worker failures counted against the shard."""


class WorkerDecision(NamedTuple):
    """A worker that failed: whether another one replaces it, and whether its node is still used."""

    replace: bool = True
    """True if another worker starts."""
    avoid: Exception | None = None
    """Cause for which the node is avoided from now on."""
    evict: bool = False
    """True if idle workers on the node are replaced as well."""
    end: Exception | None = None
    """Cause that ends the run: no node is left to work on."""


class FaultLedger:
    """Faults of one run. Shards are known by part name; `nodes` are the live nodes large enough for a worker."""

    def __init__(self, max_attempts: int) -> None:
        self._max_attempts = max_attempts
        self._failures: defaultdict[str, list[str]] = defaultdict(list)  # part -> nodes its workers failed on
        self._losses: Counter[str] = Counter()  # part -> nodes lost under it
        self._failed_there: defaultdict[str, set[str]] = defaultdict(set)  # node -> parts, since its last success
        self._load_failures: Counter[str] = Counter()  # node -> load failures in a row
        self.suspects: set[str] = set()
        """Parts of shards that may have killed a worker: no other shard is open in a worker beside one of them."""
        self.avoided: dict[str, str] = {}
        """Avoided node -> cause."""

    # Loading.

    def worker_loaded(self, node: str) -> None:
        """Note that a worker on this node is ready."""
        self._load_failures[node] = 0

    def load_failed(self, node: str, reason: str, nodes: Collection[str], *, ready: bool) -> WorkerDecision:
        """Count a worker that failed before it was ready, on a node ("": not placed on any yet).

        Another one may succeed, until the node has cost too many. `ready` tells whether any worker is ready.
        """
        self._load_failures[node] += 1
        if self._load_failures[node] < LOAD_FAILURES or (node and node in self.avoided):
            return WorkerDecision()
        cause = RunFailed(f"{LOAD_FAILURES} workers in a row failed to load: {reason}")
        return self.cannot_load(node, cause, nodes, ready=ready)

    def cannot_load(self, node: str, cause: Exception, nodes: Collection[str], *, ready: bool) -> WorkerDecision:
        """Avoid a node on which no worker can load; end the run where that leaves none to work with."""
        others = bool(node) and self.elsewhere(node, nodes)
        if not others and not ready:
            return WorkerDecision(replace=False, end=cause)
        return WorkerDecision(replace=others, avoid=self._avoid(node, cause))

    # Working on shards.

    def shard_scored(self, node: str) -> None:
        """Note that a worker on this node scored a shard."""
        self._failed_there.pop(node, None)

    def worker_failed(
        self,
        part: str,
        node: str,
        reason: str,
        nodes: Collection[str],
        *,
        beside: Collection[str] = (),
        marks: bool = True,
    ) -> tuple[ShardDecision, WorkerDecision]:
        """Count a worker that failed over a shard while its node lived on; `beside` are its other open shards.

        Too many failures quarantine the shard; where it may be innocent of this one (`marks` is False) they fail it.
        """
        self._failed_there[node].add(part)
        self.suspects.add(part)
        self.suspects.update(beside)
        if not beside:
            self._failures[part].append(node)
        attempts = len(self._failures.get(part, ()))
        if attempts >= self._max_attempts:
            fate = ShardDecision("quarantine" if marks else "fail", f"{reason} ({attempts} times)", attempts)
        else:
            fate = ShardDecision("retry", attempts=attempts)
        return fate, self._after_failure(node, reason, nodes)

    def node_lost(
        self, part: str, node: str, reason: str, nodes: Collection[str]
    ) -> tuple[ShardDecision, WorkerDecision]:
        """Count a node that was lost while a worker on it was working on a shard."""
        self._losses[part] += 1
        if self._losses[part] >= NODE_LOSSES:
            fate = ShardDecision("fail", f"lost {NODE_LOSSES} times with the node of its worker: {reason}")
        else:
            fate = ShardDecision("retry", attempts=len(self._failures.get(part, ())))
        return fate, self._after_failure(node, reason, nodes)

    def may_try(self, part: str, node: str, ready_nodes: Collection[str]) -> bool:
        """Tell whether a shard may go to a node: not where it failed already, unless it can be tried nowhere else."""
        failed_on = self._failures.get(part, ())
        return node not in failed_on or all(other in failed_on for other in ready_nodes)

    # Nodes.

    def elsewhere(self, node: str, nodes: Collection[str]) -> bool:
        """Tell whether a node other than this one can be used."""
        return any(other != node and other not in self.avoided for other in nodes)

    def _after_failure(self, node: str, reason: str, nodes: Collection[str]) -> WorkerDecision:
        """Replace the worker; avoid its node after too many failures in a row, where there is another one."""
        if len(self._failed_there.get(node, ())) < NODE_FAILURES or not self.elsewhere(node, nodes):
            return WorkerDecision()
        cause = RunFailed(f"{NODE_FAILURES} shards in a row lost their worker there: {reason}")
        return WorkerDecision(avoid=self._avoid(node, cause), evict=True)

    def _avoid(self, node: str, cause: Exception) -> Exception | None:
        """Note that a node is avoided; return the cause the first time."""
        if node in self.avoided:
            return None
        self.avoided[node] = str(cause)
        return cause
