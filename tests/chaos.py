"""A Ray cluster of several real nodes on this machine, an archive on a real S3 server, and things that go wrong."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.parquet as pq
import yaml
from fatal_net import POISON
from fault_proxy import FaultProxy
from hostile import tar
from ray.cluster_utils import Cluster
from tiny import labelled_tar, make_bundle, plain

from gradosr.run.driver.cluster import stop_processes
from gradosr.store import Store

ARCH = "fatal_net:fatal"
SHARDS, IMAGES = 10, 6
WORKERS = 2
EVENTS = ("worker", "node", "driver", "store", "poison", "corrupt", "unloadable")
DONE, INCOMPLETE, KILLED = 0, 5, -signal.SIGKILL


def events_of(seed: int) -> tuple[str, ...]:
    """Choose what goes wrong in the run of a seed: the first ones meet one each, the others up to four at once."""
    if seed < len(EVENTS):
        return (EVENTS[seed],)
    rng = random.Random(seed)
    return tuple(sorted(rng.sample(EVENTS, rng.randint(2, 4))))


def write_archives(store: Store, bucket: str) -> None:
    """One archive for every pair of (poison, corrupt): the same good shards in each."""
    for poison in (False, True):
        for corrupt in (False, True):
            uri = archive(bucket, poison=poison, corrupt=corrupt)
            for shard in range(SHARDS):
                store.write(f"{uri}{shard:05}.tar", labelled_tar(shard * IMAGES, IMAGES))
            if poison:
                store.write(f"{uri}poison.tar", tar([("0.png", plain(7)), ("1.png", plain(POISON))]))
            if corrupt:
                store.write(f"{uri}corrupt.tar", b"no tar at all" * 1000)
    make_bundle(store, f"{bucket}/bundle", arch=ARCH)


def archive(bucket: str, *, poison: bool, corrupt: bool) -> str:
    return f"{bucket}/archive{'-poison' * poison}{'-corrupt' * corrupt}/"


STARTS = 5
"""Times that a node is started before it is given up."""
T = TypeVar("T")


def started(start: Callable[[], T]) -> T:
    """Start a node of Ray's; Ray gives it 30 s, which are too few on a busy machine."""
    for _ in range(STARTS - 1):
        try:
            return start()
        except Exception as error:
            stop_processes(error)
            if "timed out during startup" not in str(error):
                raise
    return start()


@dataclass
class Nodes:
    """A head without cores and nodes of one core each."""

    cluster: Cluster
    extra: list[Any] = field(default_factory=list)
    changed: bool = True
    """Whether these are not WORKERS plain nodes."""

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add(self, **environment: str) -> None:
        """A node whose processes have these variables as well."""
        self.extra.append(started(lambda: self.cluster.add_node(num_cpus=1, env_vars=environment, wait=True)))
        self.changed = True

    def kill_one(self, rng: random.Random) -> None:
        """SIGKILL the raylet of a node, and all that it started with it; another node takes its place."""
        node = self.extra.pop(rng.randrange(len(self.extra)))
        self.cluster.remove_node(node, allow_graceful=False)
        self.add()

    def workers(self) -> list[int]:
        """Process ids of the actors at work on any node."""
        raylets = {node.all_processes["raylet"][0].process.pid for node in self.extra}
        return [
            pid for pid, parent, title in _processes() if parent in raylets and title.startswith("ray::WorkerActor")
        ]

    def settle(self) -> None:
        """Back to WORKERS plain nodes."""
        if self.changed:
            for node in self.extra:
                self.cluster.remove_node(node, allow_graceful=True)
            self.extra.clear()
            for _ in range(WORKERS):
                self.add()
        self.changed = False


@contextmanager
def nodes() -> Iterator[Nodes]:
    """With processes that end with this block."""
    head = {"num_cpus": 0, "include_dashboard": False}
    cluster = started(lambda: Cluster(initialize_head=True, head_node_args=head))
    try:
        made = Nodes(cluster)
        made.settle()
        yield made
    finally:
        cluster.shutdown()


def _processes() -> Iterator[tuple[int, int, str]]:
    """(pid, parent, command line) of every process of this machine."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):  # it ended meanwhile
                title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
                yield int(folder.name), int(parent), title


@dataclass(frozen=True)
class Result:
    """Remains of a run."""

    codes: tuple[int, ...]
    """Exit codes of the command, one per time it was given."""
    seconds: float
    rows: dict[str, float]
    """Key -> unknown score."""
    keys: tuple[str, ...]
    """Rows as they stand in the parts: twice, if a row is there twice."""
    quarantined: tuple[str, ...]
    errors: str


def run(seed: int | None, nodes: Nodes, store: Store, bucket: str, proxy: FaultProxy, folder: Path) -> Result:
    """`gradosr score`, given again until it ends as a run should; with a seed, things go wrong meanwhile."""
    rng, events = random.Random(seed), () if seed is None else events_of(seed)
    output = f"{bucket}/results-{seed}"
    document = {
        "bundle": f"{bucket}/bundle",
        "input": {"kind": "tar", "uri": archive(bucket, poison="poison" in events, corrupt="corrupt" in events)},
        "output": output,
        "trust": [ARCH],
        "batch_size": 4,
        "device": "cpu",
        "max_attempts": 2,
        "workers": {"max": WORKERS},
        "ray": {"address": nodes.address},
        "store": {"endpoint_url": proxy.endpoint_url, "addressing_style": "path", "read_timeout": 2},
    }
    config = folder / f"{seed}.yaml"
    config.write_text(yaml.safe_dump(document))
    if "unloadable" in events:
        nodes.add(GRADOSR_TEST_UNLOADABLE="1")
    if "store" in events:
        proxy.chaos(rng, 0.05, ("503", "reset", "cut", "stall"))
    start, codes, errors = time.monotonic(), [], []
    for attempt in range(4):
        todo = _mishaps(events if attempt == 0 else (), rng, nodes)
        code, told = _command(config, todo)
        codes.append(code)
        errors.append(told)
        if code in (DONE, INCOMPLETE):
            break
    seconds = time.monotonic() - start
    proxy.chaos(rng, 0.0, ())
    table = json.loads(store.read(f"{output}/_SUCCESS")) if codes[-1] in (DONE, INCOMPLETE) else {"parts": []}
    rows = [row for part in table["parts"] for row in _rows(store, f"{output}/parts/{part}.parquet")]
    return Result(
        tuple(codes),
        seconds,
        {row["key"]: row["unknown_score"] for row in rows},
        tuple(row["key"] for row in rows),
        tuple(sorted(table.get("quarantined", ()))),
        "\n".join(errors),
    )


def _rows(store: Store, uri: str) -> list[dict[str, Any]]:
    with store.open(store.stat(uri)) as body:
        table = pq.ParquetFile(body, pre_buffer=False).read(["key", "unknown_score"], use_threads=False)
    found: list[dict[str, Any]] = table.to_pylist()
    return found


Mishap = tuple[float, Callable[[int], None]]
"""Seconds after the start, and what happens then to the command of that pid."""


def _mishaps(events: tuple[str, ...], rng: random.Random, nodes: Nodes) -> list[Mishap]:
    def kill_worker(_pid: int) -> None:
        if found := nodes.workers():
            os.kill(rng.choice(found), signal.SIGKILL)

    todo: list[Mishap] = []
    if "worker" in events:
        todo += [(rng.uniform(3, 9), kill_worker) for _ in range(2)]
    if "node" in events:
        todo.append((rng.uniform(3, 9), lambda _pid: nodes.kill_one(rng)))
    if "driver" in events:
        todo.append((rng.uniform(4, 9), lambda pid: os.kill(pid, signal.SIGKILL)))
    return sorted(todo, key=lambda one: one[0])


def _command(config: Path, todo: list[Mishap]) -> tuple[int, str]:
    log = config.with_suffix(".log")
    start = time.monotonic()
    with log.open("wb") as errors:
        command = [sys.executable, "-m", "gradosr.jobs.cli", "score", str(config)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
    try:
        while process.poll() is None:
            time.sleep(0.05)
            if todo and time.monotonic() - start > todo[0][0]:
                todo.pop(0)[1](process.pid)
    finally:
        process.kill()
        process.wait()
    return process.returncode, log.read_text(errors="replace")
