"""Hands shards to workers on Ray, and accounts for worker failures, poison shards, faults and delay.

A failed worker is replaced, never restarted: a Ray actor that restarts fails every call while it reloads. A worker gets
a shard only after `ready` answered, and the next one while it publishes the part of the last; a shard is done once its
part is published. An exception of our own code is a verdict on the shard and is not retried. The rules stand beside
this loop: ray_errors.py (what an exception of Ray means), faults.py (what a failure leads to),
handout.py (which worker gets which shard) and verdicts.py (what became of the shards).
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError

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
from gradosr.run.driver.actor import PUBLISHING, TELLING, MakeWorker, WorkerActor, shard_worker
from gradosr.run.driver.cluster import Resources, address_of, check_local_uris, connected, live_nodes, resources
from gradosr.run.driver.faults import FaultLedger, ShardDecision, WorkerDecision
from gradosr.run.driver.handout import HandOut, Turn, WorkerHandle
from gradosr.run.driver.prometheus import RunMetrics
from gradosr.run.driver.ray_errors import meaning, own, told
from gradosr.run.driver.verdicts import Notes, Verdicts
from gradosr.run.driver.watch import Watch

__all__ = ["Driver", "Notes", "Resources", "check_local_uris", "connected", "resources"]

TICK = 0.5  # seconds between looks at the clock while nothing happens
ANSWER_TIMEOUT = 60.0  # seconds to fetch an answer of a few hundred bytes that is known to be there
SAID_EVERY = 30.0  # seconds between two warnings that workers are missing
NO_NODE = "; no node of the cluster is large enough"


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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the parts of a run: `observe` is called at every turn and ends it by raising; `stop` asks it to drain.

        All bounds in seconds go by `clock`.
        """
        self._job, self._folder, self._fingerprint = job, folder, fingerprint
        self._observe, self._notes, self._stop, self._make_worker = observe, notes, stop, make_worker
        self._clock = clock
        self._workers: list[WorkerHandle] = []
        self._calls: dict[Any, tuple[WorkerHandle, Turn | None]] = {}  # reference -> who owes it, over what
        self._faults = FaultLedger(job.max_attempts)
        self._metrics = RunMetrics(folder.uri)
        self._said = 0.0
        self._drain_until = float("inf")

    def run(self, shards: Sequence[Shard]) -> Outcome:
        """Bring every shard to a part, a quarantine mark or a failure. Raises RunFailed when no worker can work."""
        self._share = resources(self._job, len(shards))
        self._handout = HandOut(shards, self._faults)
        self._verdicts = Verdicts(self._folder, self._notes, self._metrics, shards)
        self._watch, self._enough_since = Watch(self._verdicts, self._clock), self._clock()
        for _ in range(self._share.workers):
            self._start_worker()
        try:
            while self._verdicts.open and not self._drained():
                self._assign()
                done, _ = ray.wait(list(self._calls), num_returns=1, timeout=TICK)
                for reference in done:
                    self._settle(reference, *self._calls.pop(reference))
                self._check_workers()
                self._check_enough()
                self._report()
        finally:
            for worker in self._workers:
                ray.kill(worker.actor)
        self._verdicts.outcome.interrupted = bool(self._verdicts.open)
        return self._verdicts.outcome

    def _drained(self) -> bool:
        """Tell whether the run was asked to end, and nothing that may still finish is running."""
        if not self._stop.is_set():
            return False
        running = self._running()
        if self._drain_until == float("inf"):
            self._drain_until = self._clock() + self._job.drain_timeout
            self._notes.warn(
                f"shutting down: {len(running)} running shards have {self._job.drain_timeout:g} s to finish"
            )
        return not running or self._clock() > self._drain_until

    def _ready(self) -> list[WorkerHandle]:
        return [worker for worker in self._workers if worker.ready]

    def _running(self) -> list[Turn]:
        """Return the turns over shards that have no verdict yet."""
        turns = (turn for worker in self._workers for turn in worker.turns)
        return [turn for turn in turns if turn.shard.part in self._verdicts.open]

    # A worker starts: placed on a node, loading, ready.

    def _start_worker(self) -> None:
        share = self._share
        options: dict[str, Any] = {
            "num_cpus": share.cpus,
            "num_gpus": share.gpus,
            "max_restarts": 0,
            "max_task_retries": 0,
        }
        if avoided := [node for node in self._faults.avoided if node]:
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(avoided)})"}
        job = self._job.model_copy(update={"runtime_env": {}})
        remote: Any = ray.remote  # whose types do not know all options
        kind = remote(concurrency_groups={PUBLISHING: 1, TELLING: 1})(WorkerActor)
        actor = kind.options(**options).remote(self._make_worker, job, self._fingerprint, max(1, int(share.cpus)))
        self._workers.append(worker := WorkerHandle(actor, self._clock()))
        self._calls[actor.node.remote()] = worker, None

    def _kill(self, worker: WorkerHandle) -> None:
        """End a worker, whatever it still owes."""
        ray.kill(worker.actor)
        self._workers.remove(worker)
        self._calls = {reference: owed for reference, owed in self._calls.items() if owed[0] is not worker}

    def _settle(self, reference: Any, worker: WorkerHandle, turn: Turn | None) -> None:
        if turn:
            self._settle_turn(reference, worker, turn)
        elif worker.node:
            self._settle_load(reference, worker)
        else:
            self._settle_place(reference, worker)

    def _settle_place(self, reference: Any, worker: WorkerHandle) -> None:
        try:
            worker.node = ray.get(reference, timeout=ANSWER_TIMEOUT)
        except RayError as error:
            self._lose_start(worker, error)
            return
        if worker.node in self._faults.avoided:
            self._kill(worker)
            self._start_worker()
        else:
            worker.since = self._clock()
            self._calls[worker.actor.ready.remote()] = worker, None

    def _settle_load(self, reference: Any, worker: WorkerHandle) -> None:
        try:
            ray.get(reference, timeout=ANSWER_TIMEOUT)
        except ConfigError as error:  # every worker would meet it
            raise own(error) from error
        except (NotFound, AccessDenied, BundleError, ClassifierError) as error:  # perhaps on this node alone
            self._kill(worker)
            ready = bool(self._ready())
            self._replace(worker, self._faults.cannot_load(worker.node, own(error), self._nodes(), ready=ready))
        except (RayError, GradosrError) as error:  # may not happen again: a preemption, an outage of the store
            self._lose_start(worker, error)
        else:
            self._faults.worker_loaded(worker.node)
            worker.ready = True
            progress = self._verdicts.progress
            progress.first_ready = progress.first_ready or time.monotonic()

    def _lose_start(self, worker: WorkerHandle, error: Exception) -> None:
        """Count a worker that failed before it was ready."""
        self._kill(worker)
        ready, reason = bool(self._ready()), told(own(error))
        self._replace(worker, self._faults.load_failed(worker.node, reason, self._nodes(), ready=ready))

    # A worker fails.

    def _nodes(self) -> set[str]:
        """Return the live nodes that are large enough for a worker."""
        return {str(node["NodeID"]) for node in live_nodes() if self._share.fit(node["Resources"])}

    def _replace(self, worker: WorkerHandle, decision: WorkerDecision) -> None:
        """Do with a failed worker's place and node what the ledger decided. Raises the cause that ends the run."""
        if decision.end:
            raise decision.end
        if decision.avoid:
            self._notes.warn(f"node {address_of(worker.node)} is avoided: {first_line(decision.avoid)}")
        if decision.replace:
            self._start_worker()
        if decision.evict:
            for idle in [other for other in self._ready() if other.node == worker.node and not other.turns]:
                self._kill(idle)
                self._start_worker()

    def _lose(self, worker: WorkerHandle, fates: Mapping[str, ShardDecision], place: WorkerDecision) -> None:
        """Do with a failed worker and its shards, by part, what the ledger decided.

        What it decided nothing of is tried again, behind all other shards.
        """
        self._kill(worker)
        for shard in [turn.shard for turn in worker.turns]:
            self._verdicts.progress.underway.pop(shard.part, None)
            fate = fates.get(shard.part, ShardDecision("retry"))
            if fate.action == "quarantine":
                self._verdicts.quarantine(shard, fate.reason, fate.attempts)
            elif fate.action == "fail":
                self._verdicts.fail(shard, fate.reason)
            elif shard.part in self._verdicts.open and not self._has_copy(shard, worker):
                self._handout.put_back(shard)
        self._replace(worker, place)

    def _has_copy(self, shard: Shard, worker: WorkerHandle) -> bool:
        """Tell whether a worker other than this one is working on the same shard."""
        others = (other for other in self._workers if other is not worker)
        return any(turn.shard.part == shard.part for other in others for turn in other.turns)

    # Shards go out, verdicts come back.

    def _assign(self) -> None:
        """Give free workers shards: the waiting ones, and where none waits, a straggler to one that is idle."""
        if self._stop.is_set():
            return
        ready = self._ready()
        for worker in sorted((one for one in ready if one.free), key=lambda one: len(one.turns)):
            if self._handout.waiting:
                turn = self._handout.assign(worker, ready, self._clock())
            elif worker.turns or not (turn := self._assign_straggler(worker)):
                return
            if turn:
                self._calls[worker.actor.score.remote(turn.shard, worker.prefetched)] = worker, turn

    def _assign_straggler(self, worker: WorkerHandle) -> Turn | None:
        """Give a worker the shard that is most overdue, if one is."""
        found = self._handout.straggler(self._running(), self._clock())
        if found is None:
            return None
        shard, took = found
        worker.turns.append(turn := Turn(shard, self._clock()))
        self._notes.warn(
            f"{shard.name}: {took:.0f} s at work, much longer than usual; another worker is trying it as well"
        )
        return turn

    def _settle_turn(self, reference: Any, worker: WorkerHandle, turn: Turn) -> None:
        shard = turn.shard
        try:
            stats: PartStats = ray.get(reference, timeout=ANSWER_TIMEOUT)
        except ShardUnreadable as error:
            self._verdicts.quarantine(shard, told(own(error)), attempts=1)
        except (RayError, GradosrError) as error:
            if isinstance(error, RayError) and meaning(error) != "shard":
                self._settle_failure(error, worker)
                return
            if not self._has_copy(shard, worker):  # else its copy may succeed
                self._verdicts.fail(shard, told(own(error)))
        else:
            if not turn.scored:
                turn.scored = True
                publish = worker.actor.publish.options(concurrency_group=PUBLISHING)
                self._calls[publish.remote(shard.part)] = worker, turn
                return
            self._faults.shard_scored(worker.node)
            self._handout.note_pace(shard, self._clock() - turn.since)
            self._verdicts.score(shard, stats)
        worker.turns.remove(turn)

    def _settle_failure(self, error: RayError, worker: WorkerHandle) -> None:
        """Count a worker that failed at work, or the loss of its node. Raises RunFailed if Ray itself failed."""
        kind, reason = meaning(error), f"killed its worker: {told(error)}"
        *published, shard = (turn.shard for turn in worker.turns)
        if kind == "run":
            raise RunFailed(f"Ray: {told(error)}; the same command goes on") from error
        if kind == "memory":
            reason = f"its worker was {told(error)}"
            self._notes.warn(f"{shard.name}: {reason}")
        nodes = self._nodes()
        # A live node reports its worker's failure within a second; a worker that is merely missing went with its node.
        if kind == "node" or worker.node not in {str(node["NodeID"]) for node in live_nodes()}:
            parts = [one.part for one in (shard, *published)]
            lost = [self._faults.node_lost(part, worker.node, reason, nodes) for part in parts]
            self._lose(worker, dict(zip(parts, (fate for fate, _ in lost), strict=True)), lost[0][1])
        else:
            beside = [one.part for one in (*published, worker.prefetched) if one]
            fate, place = self._faults.worker_failed(
                shard.part, worker.node, reason, nodes, beside=beside, marks=kind != "memory"
            )
            self._lose(worker, {shard.part: fate}, place)

    # The clock.

    def _check_workers(self) -> None:
        """Replace workers that exceed the bounds on a shard or on loading."""
        now = self._clock()
        for worker in list(self._workers):
            late = next((turn.shard for turn in worker.turns if now - turn.since > self._job.shard_timeout), None)
            if late:
                reason = f"took longer than shard_timeout ({self._job.shard_timeout:g} s)"
                # Another shard keeps no worker from finishing: this one alone is to blame.
                fate, place = self._faults.worker_failed(late.part, worker.node, reason, self._nodes())
                self._lose(worker, {late.part: fate}, place)
            elif worker.node and not worker.ready and now - worker.since > self._job.ray.start_timeout:
                self._lose_start(worker, RunFailed("not ready within ray.start_timeout"))

    def _check_enough(self) -> None:
        """Report that workers are missing, and end the run when they are missing for too long."""
        now = self._clock()
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
        """Describe in numbers what workers are missing."""
        free = {name: ray.available_resources().get(name, 0.0) for name in ("CPU", "GPU")}
        causes = self._faults.avoided.items()
        avoided = "".join(f"; node {address_of(node)} is avoided: {cause}" for node, cause in causes)
        usable = self._faults.elsewhere("", self._nodes())
        none_fits = "" if usable else "; no other node is large enough" if avoided else NO_NODE
        return (
            f"{len(self._ready())} of {self._share.least} ready; each needs {self._share}, "
            f"free are {free['CPU']:g} CPU and {free['GPU']:g} GPU{avoided}{none_fits}"
        )

    def _report(self) -> None:
        progress, ready = self._verdicts.progress, self._ready()
        self._watch.look(ready)
        progress.workers = len(ready)
        self._metrics.update(progress.workers, len(self._handout.waiting))
        self._observe(progress)
