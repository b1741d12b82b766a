"""The driver on a real local Ray: death, poison, hanging, failure and progress."""

import json
import re
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import doomed
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from hostile import tar
from tiny import local_job, picture, rows_of, run_here, write_archive

from gradosr.config import RaySettings, ScoreJob, Workers
from gradosr.errors import BundleError, ConfigError, RunFailed
from gradosr.results.outcome import Outcome, Progress
from gradosr.results.part import schema
from gradosr.results.stats import TableStats
from gradosr.run.driver import Driver, check_local_uris, connected, resources
from gradosr.run.driver.actor import MakeWorker, shard_worker
from gradosr.run.driver.faults import LOAD_FAILURES
from gradosr.run.plan import Plan, finish, prepare
from gradosr.scoring.ray_data import BatchScorer
from gradosr.store import Store

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # Ray leaves sockets and log files to the collector


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One local Ray for this file."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_metrics_report_interval_ms", "500")  # 10 s are long in a test
        with connected(RaySettings(), {}):
            yield


@pytest.fixture
def job(tmp_path: Path) -> ScoreJob:
    write_archive(Store(), f"{tmp_path}/archive")
    return local_job(tmp_path, workers=1)  # each imports torch, which takes seconds


def drive(job: ScoreJob, worker: MakeWorker = shard_worker) -> tuple[Plan, Outcome, list[Progress]]:
    plan, seen = prepare(job), []
    plan.claim()
    outcome = driver(job, plan, seen.append, worker).run(plan.pending)
    return plan, outcome, seen


def driver(
    job: ScoreJob,
    plan: Plan,
    observe: Callable[[Progress], None] = lambda _: None,
    worker: MakeWorker = shard_worker,
    stop: threading.Event | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Driver:
    stop = stop or threading.Event()
    return Driver(job, plan.folder, plan.fingerprint, observe, doomed.Noted(), stop, worker, clock)


@pytest.fixture
def clean(tmp_path: Path, job: ScoreJob) -> dict[str, tuple[object, ...]]:
    """Key -> unknown score, of a quiet run."""
    plan, outcome, _ = drive(local_job(tmp_path, output=f"{tmp_path}/clean", workers=1), doomed.Quick)
    finish(plan, outcome)
    return rows_of(tmp_path / "clean")


def assert_same(rows: dict[str, tuple[object, ...]], clean: dict[str, tuple[object, ...]]) -> None:
    assert rows.keys() == clean.keys()
    for key, (score,) in rows.items():
        assert score == pytest.approx(clean[key][0], abs=1e-5)


@pytest.mark.slow
def test_two_workers_make_the_same_table(job: ScoreJob, tmp_path: Path) -> None:
    run_here(local_job(tmp_path, output=f"{tmp_path}/here"))
    plan, outcome, seen = drive(job.model_copy(update={"workers": 2}))
    assert 1 <= seen[-1].workers <= 2
    summary = finish(plan, outcome)
    assert (summary.scored, summary.counts["rows"], summary.failed) == (4, 24, {})
    assert_same(rows_of(tmp_path / "results"), rows_of(tmp_path / "here"))
    last = seen[-1]
    assert (last.done, last.total, last.counts["rows"]) == (4, 4, 24)
    assert last.seconds > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")  # Ray Data sets what it calls so
def test_ray_data_scores_what_a_run_scores(job: ScoreJob, tmp_path: Path) -> None:
    import ray.data  # which imports pandas

    run_here(job)
    images = [picture(seed) for seed in range(24)]
    images[5] = b"no image"
    table = pa.table({"number": range(24), "image": images})
    pq.write_table(table, tmp_path / "images.parquet", row_group_size=6)
    dataset = ray.data.read_parquet(f"{tmp_path}/images.parquet").map_batches(
        BatchScorer, fn_constructor_args=(job.bundle,), fn_constructor_kwargs={"trust": job.trust, "threads": 1},
        batch_size=8, batch_format="pyarrow", compute=ray.data.ActorPoolStrategy(size=1), num_cpus=0.5,
    )  # fmt: skip
    dataset.write_parquet(f"{tmp_path}/scored")
    files = [pq.read_table(path) for path in (tmp_path / "scored").glob("*.parquet")]  # as many as Ray Data likes
    scored = pa.concat_tables(files).sort_by("number")  # of one type each, although most have no errors
    part = {field.name: field.type for field in schema()}
    assert {field.name: field.type for field in scored.schema if field.name != "number"}.items() <= part.items()
    assert scored["status"].to_pylist() == ["not_an_image" if number == 5 else "ok" for number in range(24)]
    found = scored["unknown_score"].to_pylist()
    for number, (_, (score,)) in enumerate(sorted(rows_of(tmp_path / "results").items())):
        assert found[number] == (None if number == 5 else pytest.approx(score, rel=1e-4, abs=1e-5))


def test_a_lost_worker_costs_time_not_shards(
    job: ScoreJob, tmp_path: Path, clean: dict[str, tuple[object, ...]]
) -> None:
    plan, outcome, _ = drive(job, doomed.KilledOnce)
    assert (tmp_path / "killed").exists()
    assert not outcome.quarantined
    finish(plan, outcome)
    assert_same(rows_of(tmp_path / "results"), clean)


@pytest.mark.slow
def test_a_part_is_put_while_the_next_shard_is_scored_and_before_the_one_after_is_begun(
    job: ScoreJob, tmp_path: Path, clean: dict[str, tuple[object, ...]]
) -> None:
    plan, reported = prepare(job), []
    plan.claim()

    def observe(progress: Progress) -> None:
        reported.append((progress.done, len(list((tmp_path / "results" / "parts").glob("*.parquet")))))

    outcome = driver(job, plan, observe, doomed.Overlapping).run(plan.pending)
    assert outcome.failed == {}
    assert all(done <= there for done, there in reported), "a shard is done only once its part is there"
    finish(plan, outcome)
    assert_same(rows_of(tmp_path / "results"), clean)


@pytest.mark.slow
def test_a_put_that_fails_fails_its_shard_alone(job: ScoreJob, tmp_path: Path) -> None:
    plan, outcome, _ = drive(job, doomed.FailingPut)
    assert list(outcome.failed) == ["00000.tar"]
    assert "the store is away" in outcome.failed["00000.tar"]
    assert len(outcome.scored) == 3
    finish(plan, outcome)
    plan, outcome, _ = drive(job, doomed.Quick)
    assert [shard.name for shard in plan.pending] == ["00000.tar"]


@pytest.mark.slow
def test_a_worker_that_dies_over_a_put_loses_it_and_the_next_shard_and_neither_is_blamed(
    job: ScoreJob, tmp_path: Path, clean: dict[str, tuple[object, ...]]
) -> None:
    plan, outcome, _ = drive(job.model_copy(update={"max_attempts": 1}), doomed.KilledWithTwo)
    assert (tmp_path / "killed").exists()
    assert (outcome.quarantined, outcome.failed) == ({}, {})
    finish(plan, outcome)
    assert_same(rows_of(tmp_path / "results"), clean)


@pytest.mark.slow
def test_a_poison_shard_is_reported_not_retried_for_ever(job: ScoreJob, tmp_path: Path) -> None:
    plan, outcome, _ = drive(job, doomed.Poisoned)
    summary = finish(plan, outcome)
    assert summary.quarantined == ("00001.tar",)
    assert summary.counts["rows"] == 18
    mark = json.loads(next((tmp_path / "results" / "quarantine").iterdir()).read_text())
    assert mark["attempts"] == job.max_attempts == 3
    assert "killed its worker" in mark["reason"]


@pytest.mark.slow
def test_a_shard_is_not_blamed_for_the_one_prefetched_beside_it(job: ScoreJob, tmp_path: Path) -> None:
    plan, outcome, _ = drive(job.model_copy(update={"max_attempts": 1}), doomed.PoisonedAhead)
    assert (outcome.quarantined, outcome.failed) == ({}, {})
    assert finish(plan, outcome).counts["rows"] == 24


@pytest.mark.slow
def test_a_hanging_shard_is_bounded(tmp_path: Path) -> None:
    write_archive(Store(), f"{tmp_path}/archive", shards=2)
    job = local_job(tmp_path, workers=1, shard_timeout=3000, max_attempts=1, ray={"start_timeout": 6000})
    plan, passed = prepare(job), []  # seconds that pass at once
    plan.claim()

    def wait(progress: Progress) -> None:
        if progress.done and (tmp_path / "hanging").exists() and not passed:
            passed.append(3001.0)

    clocked = driver(job, plan, wait, doomed.Hanging, clock=lambda: time.monotonic() + sum(passed))
    outcome = clocked.run(plan.pending)
    assert finish(plan, outcome).quarantined == ("00001.tar",)
    assert list(outcome.quarantined.values()) == ["took longer than shard_timeout (3000 s) (1 times)"]


@pytest.mark.slow
def test_a_bug_fails_its_shard_alone_and_the_next_run_tries_again(job: ScoreJob, tmp_path: Path) -> None:
    plan, outcome, _ = drive(job, doomed.Faulty)
    summary = finish(plan, outcome)
    assert summary.failed == {"00001.tar": "ZeroDivisionError: a bug"}
    assert not (tmp_path / "results" / "_SUCCESS").exists()
    plan, outcome, _ = drive(job, doomed.Quick)
    assert [shard.name for shard in plan.pending] == ["00001.tar"]
    assert finish(plan, outcome).counts["rows"] == 24


@pytest.mark.slow
def test_a_shard_that_vanished_is_failed_not_quarantined(job: ScoreJob, tmp_path: Path) -> None:
    plan = prepare(job)
    plan.claim()
    (tmp_path / "archive" / "00001.tar").unlink()
    outcome = driver(job, plan, worker=doomed.Quick).run(plan.pending)
    assert list(outcome.failed) == ["00001.tar"]
    assert "00001.tar" in outcome.failed["00001.tar"]
    assert not outcome.quarantined


@pytest.mark.slow
def test_a_bundle_no_worker_can_load_stops_the_run_with_its_cause(job: ScoreJob, tmp_path: Path) -> None:
    weights = tmp_path / "bundle" / "classifier.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(BundleError, match="digest differs"):
        drive(job)
    assert not (tmp_path / "results" / "parts").exists()


@pytest.mark.slow
def test_workers_that_die_while_loading_are_not_replaced_for_ever(job: ScoreJob) -> None:
    with pytest.raises(RunFailed, match=f"{LOAD_FAILURES} workers in a row failed to load"):
        drive(job, doomed.DyingAtStart)


@pytest.mark.slow
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


def scraped(run: str) -> dict[tuple[str, ...], float]:
    """Return the metrics of a run that the node serves to Prometheus: metric and its own tag -> value."""
    (node,) = ray.nodes()
    with urllib.request.urlopen(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics") as answer:
        text = answer.read().decode()
    found = {}
    for name, labels, value in re.findall(r"^ray_gradosr_(\w+){(.*)} (\S+)$", text, re.MULTILINE):
        tags = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if tags["run"] == run:
            own = [tags[tag] for tag in ("status", "outcome", "stage") if tag in tags]
            found[(name, *own)] = float(value)
    return found


def until(holds: Callable[[], bool], shown: Callable[[], object]) -> None:
    """Wait until something holds, for a minute at most; what is shown says why it does not."""
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, shown()
        time.sleep(0.2)


@pytest.mark.slow
def test_images_of_a_shard_at_work_are_counted_while_it_is(job: ScoreJob, tmp_path: Path) -> None:
    plan, told = prepare(job), list[tuple[int, float]]()

    def observe(progress: Progress) -> None:
        if progress.underway:
            told.append((progress.images - progress.counts["rows"], progress.share))
            (tmp_path / "seen").touch()

    plan.claim()
    outcome = driver(job, plan, observe, doomed.Slow).run(plan.pending)
    assert len(outcome.scored) == 4
    images, share = told[0]
    assert images == 3
    assert 0.2 < share < 0.9  # no more than the shard is counted, whatever the worker tells


@pytest.mark.slow
def test_prometheus_is_served_what_the_run_did(job: ScoreJob, tmp_path: Path) -> None:
    (tmp_path / "archive" / "00001.tar").write_bytes(b"not a tar at all" * 100)
    Store().write(f"{tmp_path}/archive/bad.tar", tar([("good.png", picture(99)), ("bad.png", b"no image")]))
    plan, seen, gauges = prepare(job), [], {("queue_shards",), ("workers",)}

    def observe(progress: Progress) -> None:
        if not seen:  # while the run is on, which this holds up: gauges go with it
            until(lambda: gauges <= scraped(job.output).keys(), lambda: scraped(job.output))
        seen.append(progress)

    plan.claim()
    outcome = driver(job, plan, observe).run(plan.pending)
    seconds = TableStats.of(outcome.scored).seconds()
    wanted = {
        ("images_total", "ok"): 19, ("images_total", "not_an_image"): 1,
        ("shards_total", "done"): 4, ("shards_total", "quarantined"): 1,
        **{("stage_seconds_total", stage): pytest.approx(spent) for stage, spent in seconds.items()},
    }  # fmt: skip
    if seen[-1].counts["unknown"]:
        wanted["unknown_images_total",] = seen[-1].counts["unknown"]

    def counters() -> dict[tuple[str, ...], float]:
        return {name: n for name, n in scraped(job.output).items() if name not in gauges}

    until(lambda: counters() == wanted, counters)
    last = seen[-1]
    assert (last.done, last.failed, last.quarantined) == (5, 0, 1)
    assert last.done_bytes == last.total_bytes == sum(path.stat().st_size for path in (tmp_path / "archive").iterdir())


@pytest.mark.slow
def test_workers_read_groups_of_images_from_their_pieces(tmp_path: Path) -> None:
    for seed in range(5):
        Store().write(f"{tmp_path}/archive/{seed}.png", picture(seed))
    job = local_job(tmp_path, input={"kind": "images", "uri": f"{tmp_path}/archive/", "group_size": 2}, workers=1)
    planned = prepare(job)
    check_local_uris(job, planned.pending[0])
    plan, outcome, _ = drive(job, doomed.Quick)
    assert (finish(plan, outcome).counts["ok"], outcome.failed) == (5, {})
    assert sorted(rows_of(tmp_path / "results")) == [f"{seed}.png" for seed in range(5)]


def test_one_node_sees_its_own_files(job: ScoreJob) -> None:
    check_local_uris(job, prepare(job).pending[0])


@pytest.mark.slow
def test_a_straggler_is_run_twice_and_the_first_part_counts(
    job: ScoreJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean: dict[str, tuple[object, ...]]
) -> None:
    monkeypatch.setattr("gradosr.run.driver.handout.STRAGGLER_SECONDS", 1.0)
    plan, outcome, _ = drive(job.model_copy(update={"workers": 2}), doomed.Straggling)
    assert finish(plan, outcome).scored == 4
    assert_same(rows_of(tmp_path / "results"), clean)


@pytest.mark.slow
def test_asked_to_end_it_lets_running_shards_finish_and_the_next_run_takes_the_rest(
    job: ScoreJob, tmp_path: Path, clean: dict[str, tuple[object, ...]]
) -> None:
    plan, stop, turns = prepare(job), threading.Event(), list[int]()
    plan.claim()

    def end(progress: Progress) -> None:
        turns.append(progress.workers)
        if turns[-2:] == [1, 1]:  # ready a turn ago, it has a shard now, and holds it
            stop.set()
            (tmp_path / "go").touch()

    patient = job.model_copy(update={"drain_timeout": 3600})
    outcome = driver(patient, plan, end, doomed.Held, stop).run(plan.pending)
    assert outcome.interrupted
    assert len(outcome.scored) == 1
    summary = finish(plan, outcome)
    assert summary.interrupted
    assert not (tmp_path / "results" / "_SUCCESS").exists()
    plan, outcome, _ = drive(job, doomed.Quick)
    assert len(plan.pending) == 4 - summary.scored
    finish(plan, outcome)
    assert_same(rows_of(tmp_path / "results"), clean)


@pytest.mark.slow
def test_draining_is_bounded(tmp_path: Path) -> None:
    write_archive(Store(), f"{tmp_path}/archive", shards=2)
    job = local_job(tmp_path, workers=2, drain_timeout=1)
    plan, stop = prepare(job), threading.Event()
    plan.claim()

    def end(progress: Progress) -> None:
        if progress.done and (tmp_path / "hanging").exists():
            stop.set()

    outcome = driver(job, plan, end, doomed.Hanging, stop).run(plan.pending)
    assert outcome.interrupted
    assert len(outcome.scored) == 1


@pytest.mark.slow
def test_a_run_goes_on_with_the_workers_there_are(job: ScoreJob, tmp_path: Path) -> None:
    elastic = job.model_copy(update={"workers": Workers(max=4, cpus=ray.cluster_resources()["CPU"])})
    plan, outcome, seen = drive(elastic, doomed.Quick)
    assert finish(plan, outcome).counts["rows"] == 24
    assert max(progress.workers for progress in seen) == 1


def test_what_is_missing_for_a_worker_is_said(job: ScoreJob) -> None:
    greedy = job.model_copy(update={"workers": Workers(max=1, cpus=10_000), "ray": RaySettings(start_timeout=1)})
    with pytest.raises(RunFailed, match=r"0 of 1 ready; each needs 10000 CPU and 0 GPU, free .* no node .* large"):
        drive(greedy)
