"""The Ray cluster as a run sees it: reached or started, its nodes, and what a worker takes of it."""

import itertools
import logging
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray._private.node import Node
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from gradosr.archive.pieces import members
from gradosr.archive.shards import Shard
from gradosr.config import RaySettings, ScoreJob, Workers
from gradosr.errors import ConfigError, InputError, RunFailed, first_line, machine_fault
from gradosr.run.driver.ray_errors import own, told
from gradosr.store import Store, is_shared, scheme_of

LOOK_TIMEOUT = 120.0  # seconds a node may take to say whether it sees a path


@dataclass(frozen=True)
class Resources:
    """Share of the cluster that one worker takes, and how many workers are asked for."""

    workers: int
    cpus: float
    gpus: float
    least: int = 1
    """Ready workers without which a run does not go on."""

    def __str__(self) -> str:
        return f"{self.cpus:g} CPU and {self.gpus:g} GPU"

    def fit(self, node: Mapping[str, float]) -> bool:
        """Tell whether a node of these resources could ever hold one worker."""
        return node.get("CPU", 0.0) >= self.cpus and node.get("GPU", 0.0) >= self.gpus


STARTS = 3
"""Times that a Ray of our own is started at least before it is given up."""


@contextmanager
def connected(settings: RaySettings, runtime_env: Mapping[str, Any]) -> Iterator[None]:
    """Start a Ray of our own (`local`), or connect to the one at an address. Raises InputError when that fails.

    Ray gives its processes 30 s to start, too few on a busy machine; one of our own that was too slow is started again
    until `start_timeout` is over. What Ray itself raises in the block is RunFailed.
    """
    local = settings.address == "local"
    options: dict[str, Any] = {"address": settings.address, "log_to_driver": False, "logging_level": logging.ERROR}
    if local:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Nothing travels through the object store but shard names and reports.
        options |= {"include_dashboard": False, "object_store_memory": 100 << 20}
    terminate, start = signal.getsignal(signal.SIGTERM), time.monotonic()
    for tried in itertools.count(1):
        try:
            ray.init(**options, runtime_env=dict(runtime_env) or None)
            break
        except Exception as error:  # what Ray raises where its processes are slow to start is no more than that
            stop_processes(error)
            ray.shutdown()
            slow = "timed out during startup" in str(error) and time.monotonic() - start < settings.start_timeout
            if not local or (tried >= STARTS and not slow):
                if fault := machine_fault(error):
                    raise fault from error
                reason = f"no Ray cluster answers there: {first_line(error)}"
                raise InputError(f"ray.address {settings.address}: {reason}") from error
    # Ray's own handler exits with 15 and says nothing.
    signal.signal(signal.SIGTERM, terminate)
    try:
        with redirect_stdout(sys.stderr):  # where Ray prints that a worker died; stdout is for data
            yield
    except RayError as error:
        raise RunFailed(f"Ray: {told(own(error))}; the same command goes on") from error
    finally:
        ray.shutdown()


def stop_processes(error: Exception) -> None:
    """Stop the processes of a Ray that was too slow to start: Ray itself leaves them running, busy with starting."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if isinstance(node := frame.f_locals.get("self"), Node):
            node.kill_all_processes(check_alive=False, allow_graceful=False)


def resources(job: ScoreJob, shards: int) -> Resources:
    """Divide the cluster among workers: as configured, else one per GPU or core; never more workers than shards."""
    total = ray.cluster_resources()
    gpus = total.get("GPU", 0.0) if job.device_needed != "cpu" else 0.0
    if isinstance(job.workers, Workers):
        wanted = job.workers
        needs = job.device_needed == "cuda" or gpus > 0 if wanted.gpus is None else wanted.gpus
        return Resources(min(wanted.max, shards), wanted.cpus, float(needs), min(wanted.min, shards))
    if job.device_needed == "cuda" and not gpus:
        raise ConfigError("device: cuda, but the Ray cluster has no GPU; one that adds nodes takes workers: {max: N}")
    cpus = total.get("CPU", 1.0)
    smallest = min((node["Resources"].get("CPU", 0.0) or cpus for node in live_nodes()), default=cpus)
    workers = max(1, min(int(gpus or cpus) if job.workers == "auto" else job.workers, shards))
    each = min(cpus / workers, smallest)
    return Resources(workers, float(int(each)) if each >= 1 else each, gpu_share(workers, gpus))


def gpu_share(workers: int, gpus: float) -> float:
    """Return the share of a GPU that lets every worker fit: 12 workers on 8 GPUs take 1/2 each, as 2/3 would fit 8."""
    return 1 / math.ceil(workers / gpus) if gpus else 0.0


def live_nodes() -> list[dict[str, Any]]:
    """Return the nodes that are alive, in Ray's own words."""
    return [node for node in ray.nodes() if node["Alive"]]


def check_local_uris(job: ScoreJob, shard: Shard) -> None:
    """Raise ConfigError for a local path of the job that a node of the cluster does not see; `shard` is a sample.

    Also for a URI that no other process sees: workers are processes of their own.
    """
    uris = [job.bundle, _object_of(job, shard), job.output]
    if job.embedder is not None:
        uris += filter(None, (job.embedder.weights, job.embedder.folder))
    if mine := [uri for uri in uris if scheme_of(uri).seen_from == "process"]:
        raise ConfigError(f"{mine[0]}: in the memory of this process, where no worker sees it")
    nodes, local = live_nodes(), [uri for uri in uris if not is_shared(uri)]
    if len(nodes) < 2 or not local:
        return
    look = ray.remote(_missing)
    for node in nodes:
        here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        looked = look.options(num_cpus=0, scheduling_strategy=here).remote(local)
        address = node["NodeManagerAddress"]
        try:
            missing: list[str] = ray.get(looked, timeout=LOOK_TIMEOUT)
        except RayError as error:
            if node["NodeID"] not in {one["NodeID"] for one in live_nodes()}:
                continue  # gone meanwhile, and no worker will be on it
            cause = f"no answer within {LOOK_TIMEOUT:g} s" if isinstance(error, GetTimeoutError) else told(own(error))
            raise RunFailed(f"node {address} cannot tell whether it sees {local[0]}: {cause}") from error
        if missing:
            raise ConfigError(f"{missing[0]}: not seen by node {address}; use s3:// or a shared file system")


def _object_of(job: ScoreJob, shard: Shard) -> str:
    """Return the URI of an object that a shard is read from."""
    return members(shard, Store(job.store, job.stores))[0].uri if shard.piece else shard.uri


def _missing(paths: list[str]) -> list[str]:
    return [path for path in paths if not Path(path.removeprefix("file://")).exists()]


def address_of(node: str) -> str:
    """Look up a node's address by Ray's name of it, also when it is gone."""
    return next((str(one["NodeManagerAddress"]) for one in ray.nodes() if one["NodeID"] == node), node or "unknown")
