"""A worker that Ray's memory monitor really evicts."""

import threading
from pathlib import Path

import doomed
import pytest
from tiny import local_job, write_archive

from gradosr.config import RaySettings, ScoreJob
from gradosr.errors import RunFailed
from gradosr.results.outcome import Outcome
from gradosr.run.driver import Driver, connected
from gradosr.run.driver.ray_errors import EVICTED
from gradosr.run.plan import finish, prepare
from gradosr.store import Store

MARGIN = 2 << 30
"""Bytes beyond those in use at which Ray evicts workers: less than Gorging takes, more than any other worker does."""
NEEDED = 6 << 30
"""Bytes that must be free for this: half of them stay free."""


def memory() -> tuple[int, int]:
    """Bytes of memory in use on this machine, and all that it has, as Ray counts them."""
    words = [line.split() for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines()]
    found = {name: int(size) << 10 for name, size, *_ in words}
    return found["MemTotal:"] - found["MemAvailable:"], found["MemTotal:"]


def evicted(job: ScoreJob, notes: doomed.Noted) -> Outcome | None:
    """Run the job on a Ray of its own; None if the memory of others decided what happened."""
    used, total = memory()
    if total - used < NEEDED:
        return None
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_memory_usage_threshold", str((used + MARGIN) / total))
        patched.setenv("RAY_memory_monitor_refresh_ms", "100")
        plan, full = prepare(job), Path(job.output).parent / "full"
        plan.claim()
        stop = threading.Event()
        driver = Driver(job, plan.folder, plan.fingerprint, lambda _: None, notes, stop, doomed.Gorging)
        try:
            with connected(RaySettings(), {}):
                outcome = driver.run(plan.pending)
        except RunFailed:
            if "low on memory" in str(notes.warnings) and memory()[0] > used + MARGIN:
                return None
            raise
    finish(plan, outcome)
    return None if full.exists() or (outcome.failed and memory()[0] > used + MARGIN) else outcome


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_worker_evicted_for_memory_costs_time_not_the_run(tmp_path: Path) -> None:
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        write_archive(Store(), f"{folder}/archive")
        notes = doomed.Noted()
        if outcome := evicted(local_job(folder, workers=1), notes):
            break
    else:
        pytest.skip("others took or freed too much memory meanwhile")  # Ray evicts by that of the whole machine
    assert (len(outcome.scored), outcome.quarantined, outcome.failed) == (4, {}, {})
    assert f"00001.tar: its worker was {EVICTED}" in notes.warnings
