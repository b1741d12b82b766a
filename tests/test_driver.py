"""The driver on a real local Ray: death, poison, hanging, failure and progress."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import doomed
import pytest
import ray
from tiny import local_job, rows_of, run_here, write_archive

from gradosr.config import RaySettings, ScoreJob
from gradosr.driver import LOST_STARTS, Driver, check_local_uris, connected, resources
from gradosr.errors import BundleError, ConfigError, RunFailed
from gradosr.progress import Outcome, Progress
from gradosr.run import Plan, finish, prepare
from gradosr.store import Store
from gradosr.worker import ShardWorker

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # Ray leaves sockets and log files to the collector


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One local Ray for this file."""
    with connected(RaySettings(), {}):
        yield


@pytest.fixture
def job(tmp_path: Path) -> ScoreJob:
    write_archive(Store(), f"{tmp_path}/archive")
    return local_job(tmp_path, workers=2)


def drive(job: ScoreJob, worker: type[ShardWorker] = ShardWorker) -> tuple[Plan, Outcome, list[Progress]]:
    plan, seen = prepare(job), []
    plan.claim()
    outcome = driver(job, plan, seen.append, worker).run(plan.pending)
    return plan, outcome, seen


def driver(
    job: ScoreJob,
    plan: Plan,
    observe: Callable[[Progress], None] = lambda _: None,
    worker: type[ShardWorker] = ShardWorker,
) -> Driver:
    return Driver(job, plan.folder, plan.fingerprint, observe, print, threading.Event(), worker)


@pytest.fixture
def clean(tmp_path: Path, job: ScoreJob) -> dict[str, tuple[object, ...]]:
    """Key -> unknown score, of a run in this process."""
    run_here(local_job(tmp_path, output=f"{tmp_path}/clean"))
    return rows_of(tmp_path / "clean")


def assert_same(rows: dict[str, tuple[object, ...]], clean: dict[str, tuple[object, ...]]) -> None:
    assert rows.keys() == clean.keys()
    for key, (score,) in rows.items():
        assert score == pytest.approx(clean[key][0], abs=1e-5)


def test_two_workers_make_the_same_table(job: ScoreJob, tmp_path: Path, clean: dict[str, tuple[object, ...]]) -> None:
    plan, outcome, seen = drive(job)
    assert 1 <= seen[-1].workers <= 2
    summary = finish(plan, outcome)
    assert (summary.scored, summary.counts["rows"], summary.failed) == (4, 24, {})
    assert_same(rows_of(tmp_path / "results"), clean)
    last = seen[-1]
    assert (last.done, last.total, last.counts["rows"]) == (4, 4, 24)
    assert last.seconds > 0


def test_a_lost_worker_costs_time_not_shards(
    job: ScoreJob, tmp_path: Path, clean: dict[str, tuple[object, ...]]
) -> None:
    plan, outcome, _ = drive(job, doomed.KilledOnce)
    assert (tmp_path / "killed").exists()
    assert not outcome.quarantined
    finish(plan, outcome)
    assert_same(rows_of(tmp_path / "results"), clean)


def test_a_poison_shard_is_reported_not_retried_for_ever(job: ScoreJob, tmp_path: Path) -> None:
    plan, outcome, _ = drive(job, doomed.Poisoned)
    summary = finish(plan, outcome)
    assert summary.quarantined == ("00001.tar",)
    assert summary.counts["rows"] == 18
    mark = json.loads(next((tmp_path / "results" / "quarantine").iterdir()).read_text())
    assert mark["attempts"] == job.max_attempts == 3
    assert "killed its worker" in mark["reason"]


def test_a_hanging_shard_is_bounded(tmp_path: Path) -> None:
    write_archive(Store(), f"{tmp_path}/archive", shards=2)
    job = local_job(tmp_path, workers=2, shard_timeout=3, max_attempts=1)
    plan, outcome, _ = drive(job, doomed.Hanging)
    assert finish(plan, outcome).quarantined == ("00001.tar",)
    assert list(outcome.quarantined.values()) == ["took longer than shard_timeout (3 s) (1 times)"]


def test_a_bug_fails_its_shard_alone_and_the_next_run_tries_again(job: ScoreJob, tmp_path: Path) -> None:
    plan, outcome, _ = drive(job, doomed.Faulty)
    summary = finish(plan, outcome)
    assert summary.failed == {"00001.tar": "ZeroDivisionError: a bug"}
    assert not (tmp_path / "results" / "_SUCCESS").exists()
    plan, outcome, _ = drive(job)
    assert [shard.name for shard in plan.pending] == ["00001.tar"]
    assert finish(plan, outcome).counts["rows"] == 24


def test_a_shard_that_vanished_is_failed_not_quarantined(job: ScoreJob, tmp_path: Path) -> None:
    plan = prepare(job)
    plan.claim()
    (tmp_path / "archive" / "00001.tar").unlink()
    outcome = driver(job, plan).run(plan.pending)
    assert list(outcome.failed) == ["00001.tar"]
    assert "00001.tar" in outcome.failed["00001.tar"]
    assert not outcome.quarantined


def test_a_bundle_no_worker_can_load_stops_the_run_with_its_cause(job: ScoreJob, tmp_path: Path) -> None:
    weights = tmp_path / "bundle" / "classifier.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(BundleError, match="digest differs"):
        drive(job)
    assert not (tmp_path / "results" / "parts").exists()


def test_workers_that_die_while_loading_are_not_replaced_for_ever(job: ScoreJob) -> None:
    with pytest.raises(RunFailed, match=f"{LOST_STARTS} workers in a row failed to load"):
        drive(job, doomed.DyingAtStart)


def test_a_worker_refuses_a_folder_that_another_run_took(job: ScoreJob, tmp_path: Path) -> None:
    plan = prepare(job)
    plan.claim()
    document = json.loads((tmp_path / "results" / "run.json").read_text())
    document["fingerprint"]["max_pixels"] = 7
    (tmp_path / "results" / "run.json").write_text(json.dumps(document))
    with pytest.raises(ConfigError, match="max_pixels was 7"):
        driver(job, plan).run(plan.pending)


def test_resources_follow_the_cluster(job: ScoreJob) -> None:
    cores = ray.cluster_resources()["CPU"]
    assert resources(job.model_copy(update={"workers": "auto"}), 100).workers == int(cores)
    assert resources(job, shards=1).workers == 1
    many = resources(job.model_copy(update={"workers": 8}), 100)
    assert (many.workers, many.cpus) == (8, min(cores / 8, 1.0) if cores < 8 else float(int(cores / 8)))
    if "GPU" not in ray.cluster_resources():
        with pytest.raises(ConfigError, match="no GPU"):
            resources(job.model_copy(update={"device": "cuda"}), 1)


def test_one_node_sees_its_own_files(job: ScoreJob) -> None:
    check_local_uris(job, prepare(job).pending[0])
