"""The driver on several real Ray nodes: those that cannot load, that eat shards, that die."""

import random
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import doomed
import pytest
from chaos import WORKERS, Nodes, nodes
from tiny import local_job, write_archive

from gradosr.config import RaySettings, ScoreJob, Workers
from gradosr.errors import ConfigError, RunFailed
from gradosr.results.outcome import Outcome, Progress
from gradosr.run.driver import Driver, check_local_uris, connected
from gradosr.run.driver.actor import MakeWorker
from gradosr.run.plan import finish, prepare
from gradosr.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    with nodes() as made, connected(RaySettings(address=made.address), {}):
        yield made


@pytest.fixture
def job(tmp_path: Path) -> ScoreJob:
    write_archive(Store(), f"{tmp_path}/archive", shards=8)
    return local_job(tmp_path, workers=Workers(max=WORKERS + 1))


def drive(
    job: ScoreJob, worker: MakeWorker, happened: Callable[[Progress, list[str]], bool]
) -> tuple[Outcome, list[str]]:
    """Run the job; workers finish shards only when what the test is about has happened: a slow machine changes nothing.

    `happened` is asked at every turn, with the progress and the warnings so far.
    """
    plan, notes = prepare(job), doomed.Noted()
    plan.claim()

    def observe(progress: Progress) -> None:
        if happened(progress, notes.warnings):
            (Path(job.output).parent / "go").touch()

    driver = Driver(job, plan.folder, plan.fingerprint, observe, notes, threading.Event(), worker)
    outcome = driver.run(plan.pending)
    assert finish(plan, outcome).counts["rows"] == 48
    return outcome, notes.warnings


def test_a_node_that_cannot_load_is_avoided_and_says_why_once(cluster: Nodes, job: ScoreJob) -> None:
    cluster.add(GRADOSR_TEST_UNLOADABLE="1")
    try:
        _, said = drive(job, doomed.Unloadable, lambda _, said: bool(said))
    finally:
        cluster.settle()
    (avoided,) = [line for line in said if "is avoided" in line]  # a busy machine may be told to be slow as well
    assert "lacks a driver" in avoided


def test_nodes_of_one_machine_see_its_files(cluster: Nodes, job: ScoreJob, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    check_local_uris(job, prepare(job).pending[0])
    with pytest.raises(ConfigError, match=r"gone: not seen by node .*; use s3:// or a shared file system"):
        check_local_uris(job.model_copy(update={"output": f"{tmp_path}/gone"}), prepare(job).pending[0])


def test_a_node_that_does_not_answer_is_told(
    cluster: Nodes, job: ScoreJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "results").mkdir()
    monkeypatch.setattr("gradosr.run.driver.cluster.LOOK_TIMEOUT", 0.5)
    raylets = [node.all_processes["raylet"][0].process for node in cluster.extra]
    for raylet in raylets:
        raylet.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(RunFailed, match=r"^node .* cannot tell whether it sees .*: no answer within 0.5 s$"):
            check_local_uris(job, prepare(job).pending[0])
    finally:
        for raylet in raylets:
            raylet.send_signal(signal.SIGCONT)


@pytest.mark.slow
def test_a_node_that_eats_shards_is_avoided_and_they_are_scored_elsewhere(
    cluster: Nodes, job: ScoreJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradosr.run.driver.faults.NODE_FAILURES", 1)  # eight shards are few
    cluster.add(GRADOSR_TEST_EATING="1")
    try:
        outcome, said = drive(job.model_copy(update={"max_attempts": 2}), doomed.Eating, lambda _, said: bool(said))
    finally:
        cluster.settle()
    assert not outcome.quarantined
    assert [line for line in said if "1 shards in a row lost their worker there" in line]


def test_a_shard_is_not_blamed_for_the_death_of_its_node(cluster: Nodes, job: ScoreJob) -> None:
    turns, killed = list[int](), list[int]()

    def kill(progress: Progress, _: list[str]) -> bool:
        turns.append(progress.workers)
        if turns[-2:] != [WORKERS, WORKERS] or killed:
            return bool(killed)
        killed.append(len(turns))  # those that were ready a turn ago have shards now, and hold them
        cluster.kill_one(random.Random(0))
        return True

    outcome, _ = drive(job.model_copy(update={"max_attempts": 1}), doomed.Held, kill)
    assert killed
    assert not outcome.quarantined
