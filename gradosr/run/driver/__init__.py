"""Hands shards to workers on Ray: one shard per free worker; death, poison, failure and delay are accounted for here.

Dead is dead: a Ray actor that restarts fails every call while it reloads, so a lost worker is
replaced by a new one, and a worker gets a shard only after `ready` answered. A death counts against
the shard the worker held and against its node; the death of the whole node against neither. An
exception of our own code is a verdict on the shard and is not retried.
"""

import statistics
import sys
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError, RayTaskError

from gradosr.archive.shards import Shard
from gradosr.config import ScoreJob
from gradosr.errors import (
    AccessDenied,
    BundleError,
    ClassifierError,
    ConfigError,
    GradosrError,
    NotFound,
    RunFailed,
    ShardUnreadable,
    first_line,
)
from gradosr.results.folder import RunFolder
from gradosr.results.outcome import Outcome, PartStats, Progress
from gradosr.run.driver.actor import MakeWorker, WorkerActor, shard_worker
from gradosr.run.driver.cluster import Resources, address_of, check_local_uris, connected, live_nodes, resources
from gradosr.run.driver.prometheus import RunMetrics

__all__ = ["Driver", "Resources", "check_local_uris", "connected", "resources"]

TICK = 0.5  # seconds between looks at the clock while nothing happens
LOST_STARTS = 3  # workers that may die on one node while they load
NODE_DEATHS = 3  # shards in a row whose workers died on one node, before it is avoided
NODE_LOSSES = 10  # nodes that may die under one shard before it is given up for this run
STRAGGLING = 3.0  # times what a shard of its size usually takes, before an idle worker takes it as well
STRAGGLER_SECONDS = 10.0  # at least
SAID_EVERY = 30.0  # seconds between two lines about the same want
NO_NODE = "; no node of the cluster is large enough"


T = TypeVar("T")


class Notes(Protocol):
    """Takes what users should know at once."""

    def warn(self, text: str) -> None:
        """Trouble that the run survives."""

    def lost(self, shard: str, fate: str, reason: str) -> None:
        """A shard that becomes no part: `failed` or `quarantined`."""


@dataclass(eq=False)
class _Worker:
    """An actor and what it is doing: placed on a node (""), loading, idle or busy with a shard."""

    actor: Any
    since: float = field(default_factory=time.monotonic)
    """When it began to do so."""
    node: str = ""
    ready: bool = False
    shard: Shard | None = None
    following: Shard | None = None
    """Opened ahead while it works on `shard`: waiting like others, and likely its next."""


class Driver:
    """One run over pending shards, on a connected Ray."""

    def __init__(
        self,
        job: ScoreJob,
        folder: RunFolder,
        fingerprint: Mapping[str, Any],
        observe: Callable[[Progress], None],
        notes: Notes,
        stop: threading.Event,
        make_worker: MakeWorker = shard_worker,
    ) -> None:
        """`observe` is called at every turn, and ends the run by raising; `stop` asks it to drain."""
        self._job, self._folder, self._fingerprint = job, folder, fingerprint
        self._observe, self._notes, self._stop, self._make_worker = observe, notes, stop, make_worker
        self._calls: dict[Any, _Worker] = {}  # reference -> the worker that owes its answer
        self._idle = deque[_Worker]()
        self._waiting = deque[Shard]()
        self._open: dict[str, Shard] = {}  # part -> shard without a verdict
        self._deaths: defaultdict[str, list[str]] = defaultdict(list)  # part -> nodes its workers died on
        self._losses: Counter[str] = Counter()  # part -> nodes that died under it
        self._alone: set[str] = set()  # parts of shards that may have killed a worker: nothing is opened beside them
        self._eaten: defaultdict[str, set[str]] = defaultdict(set)  # node -> parts lost there since its last success
        self._lost_starts: Counter[str] = Counter()  # node -> deaths while loading
        self._avoided: dict[str, str] = {}  # node -> cause
        self._pace = deque[float](maxlen=100)  # seconds per byte
        self._said = 0.0
        self._drain_until = float("inf")
        self._outcome = Outcome()
        self._metrics = RunMetrics(folder.uri)

    def run(self, shards: Sequence[Shard]) -> Outcome:
        """Every shard to a part, a quarantine mark or a failure. Raises RunFailed when no worker can work."""
        self._share = resources(self._job, len(shards))
        self._open, self._waiting = {shard.part: shard for shard in shards}, deque(shards)
        self._progress = Progress(len(shards), total_bytes=sum(shard.size for shard in shards))
        self._enough_since = time.monotonic()
        for _ in range(self._share.workers):
            self._start_worker()
        try:
            while self._open and not self._drained():
                self._assign()
                done, _ = ray.wait(list(self._calls), num_returns=1, timeout=TICK)
                for reference in done:
                    self._settle(reference, self._calls.pop(reference))
                self._check_clocks()
                self._report()
        finally:
            for worker in [*self._calls.values(), *self._idle]:
                ray.kill(worker.actor)
        self._outcome.interrupted = bool(self._open)
        return self._outcome

    def _drained(self) -> bool:
        """Whether the run was asked to end, and nothing that may still finish is running."""
        if not self._stop.is_set():
            return False
        running = [worker for worker in self._calls.values() if worker.shard and worker.shard.part in self._open]
        if self._drain_until == float("inf"):
            self._drain_until = time.monotonic() + self._job.drain_timeout
            self._notes.warn(f"asked to end: {len(running)} shards may finish, within {self._job.drain_timeout:g} s")
        return not running or time.monotonic() > self._drain_until

    # Workers come: placed on a node, loading, ready.

    def _start_worker(self) -> None:
        share = self._share
        options: dict[str, Any] = {
            "num_cpus": share.cpus,
            "num_gpus": share.gpus,
            "max_restarts": 0,
            "max_task_retries": 0,
        }
        if avoided := [node for node in self._avoided if node]:
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(avoided)})"}
        threads = max(1, int(share.cpus))
        job = self._job.model_copy(update={"runtime_env": {}})
        kind: Any = ray.remote(WorkerActor).options(**options)
        actor = kind.remote(self._make_worker, job, self._fingerprint, threads)
        self._calls[actor.node.remote()] = _Worker(actor)

    def _settle(self, reference: Any, worker: _Worker) -> None:
        if worker.shard is not None:
            self._settle_shard(reference, worker, worker.shard)
        elif worker.node:
            self._settle_load(reference, worker)
        else:
            self._settle_place(reference, worker)

    def _settle_place(self, reference: Any, worker: _Worker) -> None:
        try:
            worker.node = ray.get(reference)
        except RayError as error:
            self._lose_start(worker, error)
            return
        if worker.node in self._avoided:
            ray.kill(worker.actor)
            self._start_worker()
        else:
            worker.since = time.monotonic()
            self._calls[worker.actor.ready.remote()] = worker

    def _settle_load(self, reference: Any, worker: _Worker) -> None:
        try:
            ray.get(reference)
        except ConfigError as error:  # every worker would meet it
            raise _own(error) from error
        except (NotFound, AccessDenied, BundleError, ClassifierError) as error:  # perhaps of this node alone
            ray.kill(worker.actor)
            self._avoid(worker.node, _own(error))
        except (RayError, GradosrError) as error:  # perhaps gone the next time: a death, an outage of the store
            self._lose_start(worker, error)
        else:
            self._lost_starts[worker.node] = 0
            worker.ready = True
            self._progress.first_ready = self._progress.first_ready or time.monotonic()
            self._idle.append(worker)

    def _lose_start(self, worker: _Worker, error: Exception) -> None:
        """A worker died before it was ready: another starts, until its node has cost too many."""
        ray.kill(worker.actor)
        self._lost_starts[worker.node] += 1
        if self._lost_starts[worker.node] < LOST_STARTS or (worker.node and worker.node in self._avoided):
            self._start_worker()
        else:
            told = _told(_own(error))
            self._avoid(worker.node, RunFailed(f"{LOST_STARTS} workers in a row failed to load: {told}"))

    def _avoid(self, node: str, cause: Exception) -> None:
        """No more workers on a node ("": wherever it was). Raises the cause where that leaves none to work with."""
        others = bool(node) and self._elsewhere(node)
        if not others and not self._ready():
            raise cause
        if node not in self._avoided:
            self._avoided[node] = str(cause)
            self._notes.warn(f"node {address_of(node)} is avoided: {first_line(cause)}")
        if others:
            self._start_worker()

    def _elsewhere(self, node: str) -> bool:
        """Whether another node can hold a worker."""
        shunned = {node, *self._avoided}
        return any(other["NodeID"] not in shunned and self._share.fit(other["Resources"]) for other in live_nodes())

    def _ready(self) -> list[_Worker]:
        return [*self._idle, *(worker for worker in self._calls.values() if worker.ready)]

    # Shards go out, verdicts come back.

    def _assign(self) -> None:
        if self._stop.is_set():
            return
        for _ in range(len(self._idle)):
            worker = self._idle.popleft()
            shard = self._next(worker) if self._waiting else self._straggler()
            if shard is None:
                self._idle.append(worker)
                if not self._waiting:
                    return
            else:
                worker.shard, worker.since = shard, time.monotonic()
                worker.following = self._following(shard)
                self._calls[worker.actor.process.remote(shard, worker.following)] = worker

    def _following(self, shard: Shard) -> Shard | None:
        """The first waiting shard that no other worker opens ahead; none beside one that may kill."""
        if shard.part in self._alone:
            return None
        taken = self._alone | self._opened_ahead()
        return next((waiting for waiting in self._waiting if waiting.part not in taken), None)

    def _opened_ahead(self) -> set[str]:
        """Parts of the shards that workers open ahead."""
        return {worker.following.part for worker in [*self._calls.values(), *self._idle] if worker.following}

    def _next(self, worker: _Worker) -> Shard | None:
        """The shard that the worker opened ahead, else the first that nobody did, else the first.

        Not one that has died on the worker's node already, unless it can be tried nowhere else.
        """
        shard, worker.following = worker.following, None
        if shard is None:
            taken = self._opened_ahead()
            shard = next((one for one in self._waiting if one.part not in taken and self._may_try(worker, one)), None)
        if shard is None:
            shard = next((one for one in self._waiting if self._may_try(worker, one)), None)
            for other in [*self._calls.values(), *self._idle]:
                if other.following is shard:
                    other.following = None
        if shard is not None:
            self._waiting.remove(shard)
        return shard

    def _may_try(self, worker: _Worker, shard: Shard) -> bool:
        """Whether the shard has not died on the worker's node, or every ready worker's node has seen it die."""
        nodes = self._deaths.get(shard.part, ())
        return worker.node not in nodes or all(other.node in nodes for other in self._ready())

    def _straggler(self) -> Shard | None:
        """The shard that is longest beyond what its size explains, to be run once more: the first part counts."""
        usual = statistics.median(self._pace) if self._pace else float("inf")
        running = [worker for worker in self._calls.values() if worker.shard and worker.shard.part in self._open]
        copies = Counter(worker.shard.part for worker in running if worker.shard)
        now, late = time.monotonic(), []
        for worker in running:
            shard, took = worker.shard, now - worker.since
            if shard and copies[shard.part] == 1 and took > max(STRAGGLER_SECONDS, STRAGGLING * usual * shard.size):
                late.append((took, shard))
        if not late:
            return None
        took, shard = max(late, key=lambda one: one[0])
        self._notes.warn(f"{shard.name}: {took:.0f} s at work, far beyond the usual; another worker tries it as well")
        return shard

    def _settle_shard(self, reference: Any, worker: _Worker, shard: Shard) -> None:
        try:
            stats: PartStats = ray.get(reference)
        except RayActorError as error:
            # Of a worker's own death its node tells within a second; a worker that is merely gone went with its node.
            alone = not isinstance(error, ActorUnavailableError) and worker.node in _alive()
            self._lose(worker, shard, f"killed its worker: {_told(error)}", blamed=alone)
            return
        except ShardUnreadable as error:
            self._quarantine(shard, _told(_own(error)), attempts=1)
        except (RayTaskError, GradosrError) as error:
            if not self._runs(shard):  # else its copy may succeed
                self._fail(shard, _told(_own(error)))
        else:
            self._eaten.pop(worker.node, None)
            self._pace.append((time.monotonic() - worker.since) / max(shard.size, 1))
            if self._close(shard):
                self._outcome.scored[shard.part] = PartStats(_shared(stats.counts), _shared(stats.seconds))
                self._progress.counts.update(stats.counts)
                self._metrics.add(stats)
        worker.shard = None
        self._idle.append(worker)

    def _runs(self, shard: Shard) -> bool:
        return any(other.shard and other.shard.part == shard.part for other in self._calls.values())

    def _close(self, shard: Shard) -> bool:
        """A verdict; False where a faster copy had its own."""
        if self._open.pop(shard.part, None) is None:
            return False
        self._progress.done += 1
        self._progress.done_bytes += shard.size
        return True

    def _fail(self, shard: Shard, reason: str) -> None:
        if self._close(shard):
            self._outcome.failed[shard.name] = reason
            self._progress.failed += 1
            self._lost(shard, "failed", reason)

    def _quarantine(self, shard: Shard, reason: str, attempts: int) -> None:
        if self._close(shard):
            self._folder.quarantine(shard, reason, attempts)
            self._outcome.quarantined[shard.part] = reason
            self._progress.quarantined += 1
            self._lost(shard, "quarantined", reason)

    def _lost(self, shard: Shard, fate: str, reason: str) -> None:
        self._notes.lost(shard.name, fate, reason)
        self._metrics.settle(fate)

    def _lose(self, worker: _Worker, shard: Shard, reason: str, *, blamed: bool = True) -> None:
        """A worker died over a shard: another starts, and the shard goes to the back until it has killed enough."""
        ray.kill(worker.actor)
        if blamed:
            self._eaten[worker.node].add(shard.part)
            self._alone |= {one.part for one in (shard, worker.following) if one}
            if worker.following is None:  # else it may have been that one: from now on both go alone
                self._deaths[shard.part].append(worker.node)
        else:
            self._losses[shard.part] += 1
        attempts = len(self._deaths.get(shard.part, ()))
        if attempts >= self._job.max_attempts:
            self._quarantine(shard, f"{reason} ({attempts} times)", attempts)
        elif self._losses[shard.part] >= NODE_LOSSES:
            self._fail(shard, f"lost {NODE_LOSSES} times with the node of its worker")
        elif shard.part in self._open and not self._runs(shard):
            self._waiting.append(shard)
        if len(self._eaten[worker.node]) >= NODE_DEATHS and self._elsewhere(worker.node):
            self._avoid(worker.node, RunFailed(f"{NODE_DEATHS} shards in a row lost their worker there: {reason}"))
            for other in [idle for idle in self._idle if idle.node == worker.node]:
                self._idle.remove(other)
                ray.kill(other.actor)
                self._start_worker()
        else:
            self._start_worker()

    # The clock.

    def _check_clocks(self) -> None:
        now = time.monotonic()
        for reference, worker in list(self._calls.items()):
            took = now - worker.since
            if worker.shard and took > self._job.shard_timeout:
                del self._calls[reference]
                worker.following = None  # which keeps nobody
                self._lose(worker, worker.shard, f"took longer than shard_timeout ({self._job.shard_timeout:g} s)")
            elif worker.node and not worker.ready and took > self._job.ray.start_timeout:
                del self._calls[reference]
                self._lose_start(worker, RunFailed("not ready within ray.start_timeout"))
        if len(self._ready()) >= self._share.least:
            self._share = replace(self._share, least=1)  # from now on the run goes on with what there is
            self._enough_since = now
            return
        waited = now - self._enough_since
        if waited > self._job.ray.start_timeout:
            raise RunFailed(f"ray.start_timeout: {self._want()}")
        if waited > SAID_EVERY and now - self._said > SAID_EVERY:
            self._said = now
            self._notes.warn(f"waiting for workers: {self._want()}")

    def _want(self) -> str:
        """What is missing, in numbers."""
        free = {name: ray.available_resources().get(name, 0.0) for name in ("CPU", "GPU")}
        avoided = "".join(f"; node {address_of(node)} is avoided: {cause}" for node, cause in self._avoided.items())
        none_fits = "" if self._elsewhere("") else "; no other node is large enough" if avoided else NO_NODE
        return (
            f"{len(self._ready())} of {self._share.least} ready; each needs {self._share}, "
            f"free are {free['CPU']:g} CPU and {free['GPU']:g} GPU{avoided}{none_fits}"
        )

    def _report(self) -> None:
        self._progress.workers = len(self._ready())
        self._metrics.update(self._progress.workers, len(self._waiting))
        self._observe(self._progress)


def _alive() -> set[str]:
    return {str(node["NodeID"]) for node in live_nodes()}


def _shared(stats: Mapping[str, T]) -> dict[str, T]:
    """The same with names that a hundred thousand of them share."""
    return {sys.intern(name): value for name, value in stats.items()}


def _own(error: Exception) -> Exception:
    """The exception our code raised, out of Ray's wrapping."""
    return error.cause if isinstance(error, RayTaskError) and isinstance(error.cause, Exception) else error


def _told(error: BaseException) -> str:
    """What became of a shard, in one line; a foreign error, which was written for nobody, with its type."""
    line = first_line(error)
    return line if isinstance(error, GradosrError | RayError) else f"{type(error).__name__}: {line}"
