"""Hands shards to workers on Ray: one shard per free worker; death, poison and failure are accounted for here.

Dead is dead: a Ray actor that restarts fails every call while it reloads, so a lost worker is
replaced by a new one, and a worker gets a shard only after `ready` answered. A death counts against
the shard the worker held. An exception of our own code is a verdict on the shard and is not retried.
"""

import logging
import os
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from gradosr.config import RaySettings, ScoreJob
from gradosr.errors import ConfigError, GradosrError, InputError, RunFailed, ShardUnreadable, first_line
from gradosr.progress import Outcome, Progress, ShardReport
from gradosr.results import RunFolder
from gradosr.shards import Shard
from gradosr.store import is_s3
from gradosr.worker import ShardWorker

TICK = 0.5  # seconds between looks at the clock while nothing happens
START_TIMEOUT = 600.0  # seconds without any worker becoming ready
LOST_STARTS = 3  # workers that may die while loading, in a row


@dataclass(frozen=True)
class Resources:
    """Of one worker."""

    workers: int
    cpus: float
    gpus: float


@contextmanager
def connected(settings: RaySettings, runtime_env: Mapping[str, Any]) -> Iterator[None]:
    """A Ray of our own (`local`), or the one at an address. Raises InputError when it cannot be reached."""
    local = settings.address == "local"
    options: dict[str, Any] = {"address": settings.address, "log_to_driver": False, "logging_level": logging.ERROR}
    if local:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Nothing travels through the object store but shard names and reports.
        options |= {"include_dashboard": False, "object_store_memory": 100 << 20}
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**options, runtime_env=dict(runtime_env) or None)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        raise InputError(f"ray.address {settings.address}: no Ray there: {first_line(error)}") from error
    # Ray's own handler exits with 15 and says nothing.
    signal.signal(signal.SIGTERM, terminate)
    try:
        with redirect_stdout(sys.stderr):  # where Ray prints that a worker died; stdout is for data
            yield
    finally:
        ray.shutdown()


def resources(job: ScoreJob, shards: int) -> Resources:
    """Workers and their share of the cluster: one per GPU, else one per core; never more than shards."""
    total = ray.cluster_resources()
    gpus = total.get("GPU", 0.0) if job.device != "cpu" else 0.0
    if job.device == "cuda" and not gpus:
        raise ConfigError("device: cuda, but the Ray cluster has no GPU")
    cpus = total.get("CPU", 1.0)
    smallest = min((node["Resources"].get("CPU", 0.0) or cpus for node in _nodes()), default=cpus)
    wanted = int(gpus or cpus) if job.workers == "auto" else job.workers
    workers = max(1, min(wanted, shards))
    each = min(cpus / workers, smallest)
    return Resources(workers, float(int(each)) if each >= 1 else each, min(1.0, gpus / workers) if gpus else 0.0)


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def check_local_uris(job: ScoreJob, shard: Shard) -> None:
    """Raise ConfigError for a local path of the job that a node of the cluster does not see; `shard` is a sample."""
    uris = (job.bundle, shard.members[0].uri if shard.members else shard.uri, job.output)
    nodes, local = _nodes(), [uri for uri in uris if not is_s3(uri)]
    if len(nodes) < 2 or not local:
        return
    look = ray.remote(_missing).options(num_cpus=0)
    for node in nodes:
        here = look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
        missing: list[str] = ray.get(here.remote(local), timeout=START_TIMEOUT)
        if missing:
            raise ConfigError(
                f"{missing[0]}: not seen by node {node['NodeManagerAddress']}; use s3:// or a shared file system"
            )


def _missing(paths: list[str]) -> list[str]:
    return [path for path in paths if not Path(path.removeprefix("file://")).exists()]


class Driver:
    """One run over pending shards, on a connected Ray."""

    def __init__(
        self,
        job: ScoreJob,
        folder: RunFolder,
        fingerprint: Mapping[str, Any],
        observe: Callable[[Progress], None],
        worker: type[Any] = ShardWorker,
    ) -> None:
        self._job, self._folder, self._fingerprint, self._observe = job, folder, fingerprint, observe
        self._worker = worker
        self._starting: dict[Any, Any] = {}  # ready() reference -> actor
        self._busy: dict[Any, tuple[Any, Shard, float]] = {}  # process() reference -> actor, shard, since
        self._deaths: Counter[str] = Counter()
        self._lost_starts = 0
        self._outcome = Outcome()

    def run(self, shards: Sequence[Shard]) -> Outcome:
        """Every shard to a part, a quarantine mark or a failure. Raises RunFailed when no worker can work."""
        self._share = resources(self._job, len(shards))
        self._waiting, self._idle = deque(shards), deque[Any]()
        self._progress = Progress(len(shards))
        self._last_ready = time.monotonic()
        for _ in range(self._share.workers):
            self._start_worker()
        try:
            while self._waiting or self._busy:
                self._assign()
                done, _ = ray.wait([*self._starting, *self._busy], num_returns=1, timeout=TICK)
                for reference in done:
                    self._settle(reference)
                self._check_clocks()
                self._report()
        finally:
            for actor in [*self._starting.values(), *(actor for actor, *_ in self._busy.values()), *self._idle]:
                ray.kill(actor)
        return self._outcome

    def _start_worker(self) -> None:
        share = self._share
        options = {"num_cpus": share.cpus, "num_gpus": share.gpus, "max_restarts": 0, "max_task_retries": 0}
        threads = max(1, int(share.cpus))
        job = self._job.model_copy(update={"runtime_env": {}})
        actor = ray.remote(self._worker).options(**options).remote(job, self._fingerprint, threads)
        self._starting[actor.ready.remote()] = actor

    def _assign(self) -> None:
        while self._waiting and self._idle:
            actor, shard = self._idle.popleft(), self._waiting.popleft()
            self._busy[actor.process.remote(shard)] = (actor, shard, time.monotonic())

    def _settle(self, reference: Any) -> None:
        if reference in self._starting:
            self._settle_start(reference, self._starting.pop(reference))
        else:
            actor, shard, _ = self._busy.pop(reference)
            self._settle_shard(reference, actor, shard)

    def _settle_start(self, reference: Any, actor: Any) -> None:
        try:
            ray.get(reference)
        except GradosrError as error:  # every worker would meet it: config, credentials, bundle
            raise _own(error) from error
        except RayError as error:
            ray.kill(actor)
            self._lost_starts += 1
            if self._lost_starts >= LOST_STARTS:
                raise RunFailed(f"{LOST_STARTS} workers in a row failed to load: {_told(_own(error))}") from error
            self._start_worker()
        else:
            self._lost_starts, self._last_ready = 0, time.monotonic()
            self._progress.first_ready = self._progress.first_ready or self._last_ready
            self._idle.append(actor)

    def _settle_shard(self, reference: Any, actor: Any, shard: Shard) -> None:
        try:
            report: ShardReport = ray.get(reference)
        except RayActorError as error:
            self._lose(shard, f"killed its worker: {_told(error)}")
            return
        except ShardUnreadable as error:
            self._quarantine(shard, _told(_own(error)), attempts=1)
        except (RayTaskError, GradosrError) as error:
            self._outcome.failed[shard.name] = _told(_own(error))
        else:
            self._outcome.reports.append(report)
            self._progress.counts.update(report.counts)
        self._progress.done += 1
        self._idle.append(actor)

    def _lose(self, shard: Shard, reason: str) -> None:
        """A worker died over a shard: another starts, and the shard goes to the back until it has killed enough."""
        self._deaths[shard.part] += 1
        if self._deaths[shard.part] >= self._job.max_attempts:
            self._quarantine(shard, f"{reason} ({self._deaths[shard.part]} times)", self._deaths[shard.part])
            self._progress.done += 1
        else:
            self._waiting.append(shard)
        self._start_worker()

    def _quarantine(self, shard: Shard, reason: str, attempts: int) -> None:
        self._folder.quarantine(shard, reason, attempts)
        self._outcome.quarantined[shard.part] = reason

    def _check_clocks(self) -> None:
        now = time.monotonic()
        for reference, (actor, shard, since) in list(self._busy.items()):
            if now - since > self._job.shard_timeout:
                del self._busy[reference]
                ray.kill(actor)
                self._lose(shard, f"took longer than shard_timeout ({self._job.shard_timeout:g} s)")
        if self._busy or self._idle:
            self._last_ready = now
        elif now - self._last_ready > START_TIMEOUT:
            free = {name: ray.available_resources().get(name, 0.0) for name in ("CPU", "GPU")}
            raise RunFailed(
                f"no worker became ready in {START_TIMEOUT:g} s; each needs {self._share.cpus:g} CPU and "
                f"{self._share.gpus:g} GPU, free are {free['CPU']:g} and {free['GPU']:g}"
            )

    def _report(self) -> None:
        self._progress.workers = len(self._busy) + len(self._idle)
        self._observe(self._progress)


def _own(error: Exception) -> Exception:
    """The exception our code raised, out of Ray's wrapping."""
    return error.cause if isinstance(error, RayTaskError) and isinstance(error.cause, Exception) else error


def _told(error: BaseException) -> str:
    """What became of a shard, in one line; a foreign error, which was written for nobody, with its type."""
    line = first_line(error)
    return line if isinstance(error, GradosrError | RayError) else f"{type(error).__name__}: {line}"
