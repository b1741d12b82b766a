"""Ray's exceptions: every class of them has a meaning to a run."""

from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import doomed
import pytest
import ray
from ray import exceptions
from tiny import local_job, write_archive

from gradosr.config import RaySettings, ScoreJob
from gradosr.errors import RunFailed
from gradosr.results.outcome import Outcome, PartStats
from gradosr.run.driver import Driver, connected
from gradosr.run.driver.ray_errors import EVICTED, MEANINGS, meaning, told
from gradosr.run.plan import finish, prepare
from gradosr.store import Store

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with connected(RaySettings(), {}):
        yield


@pytest.fixture
def job(tmp_path: Path) -> ScoreJob:
    write_archive(Store(), f"{tmp_path}/archive", shards=1)
    return local_job(tmp_path, workers=1)


def drive(job: ScoreJob, worker: Callable[..., Any]) -> Outcome:
    plan = prepare(job)
    plan.claim()
    driver = Driver(job, plan.folder, plan.fingerprint, lambda _: None, doomed.Noted(), Event(), worker)
    outcome = driver.run(plan.pending)
    finish(plan, outcome)
    return outcome


def classes(kind: type[BaseException] = exceptions.RayError) -> set[type[BaseException]]:
    """Collect the classes below RayError that Ray itself defines."""
    below = {one for child in kind.__subclasses__() for one in {child, *classes(child)}}
    return {one for one in below if one.__module__.split(".")[0] == "ray"}


@pytest.mark.parametrize("kind", sorted(classes(), key=lambda kind: kind.__name__))
def test_every_exception_of_ray_has_a_meaning(kind: type[Exception]) -> None:
    named = [one.__name__ for one in kind.__mro__ if one.__name__ in MEANINGS]
    assert named, f"give {kind.__name__} a meaning in ray_errors.py"
    error = kind.__new__(kind)
    assert isinstance(error, exceptions.RayError)
    assert meaning(error) == MEANINGS[named[0]]


def test_a_class_that_nobody_knows_ends_the_run() -> None:
    assert meaning(exceptions.RayError("new in Ray 9")) == "run"


def once(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Let Ray answer with this exception instead of the first shard's result."""
    get, left = ray.get, [error]

    def answer(*arguments: Any, **options: Any) -> Any:
        found = get(*arguments, **options)
        if isinstance(found, PartStats) and left:
            raise left.pop()
        return found

    monkeypatch.setattr(ray, "get", answer)


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "quarantined", "failed"),
    [
        (exceptions.NodeDiedError("the node died"), [], []),
        (exceptions.WorkerCrashedError(), ["killed its worker: The worker died"], []),
        (exceptions.OutOfMemoryError("1 worker(s) were killed\nOOM"), [], [f"its worker was {EVICTED} (1 times)"]),
        (exceptions.UnserializableException("trace"), [], ["Failed to deserialize"]),
    ],
    ids=lambda error: type(error).__name__ if isinstance(error, Exception) else "",
)
def test_a_run_survives_what_is_not_its_end(
    cluster: None,
    job: ScoreJob,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    quarantined: list[str],
    failed: list[str],
) -> None:
    once(monkeypatch, error)
    outcome = drive(job.model_copy(update={"max_attempts": 1}), doomed.Quick)
    assert len(outcome.scored) == 1 - len(quarantined) - len(failed)
    for found, wanted in ((outcome.quarantined, quarantined), (outcome.failed, failed)):
        assert [reason[: len(want)] for reason, want in zip(found.values(), wanted, strict=True)] == wanted


@pytest.mark.slow
def test_what_ends_a_run_ends_it_in_one_line(cluster: None, job: ScoreJob, monkeypatch: pytest.MonkeyPatch) -> None:
    once(monkeypatch, exceptions.RaySystemError("the head is gone"))
    with pytest.raises(RunFailed, match=r"^Ray: .*the head is gone.*the same command goes on$") as caught:
        drive(job, doomed.Quick)
    assert "\n" not in str(caught.value)


def test_the_advice_is_told_instead_of_rays_own_pages() -> None:
    assert told(exceptions.OutOfMemoryError("1 worker(s) were killed\nOOM kill reason: ...")) == EVICTED
