"""Threads and memory of the computation."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gradosr.config import ComputeSettings
from gradosr.scoring import memory
from gradosr.scoring.compute import choose_compute

PREPARED = """
import torch
from gradosr.scoring.compute import Compute
torch.set_num_threads(3)
Compute(torch.device("cpu")).prepare()
print(torch.get_num_threads())
"""


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    return subprocess.run(
        [sys.executable, "-c", code], env={**inherited, **environment}, capture_output=True, text=True, check=True
    )


@pytest.mark.slow
@pytest.mark.parametrize(("given", "policy"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_threads_that_wait_for_each_other_sleep_unless_told_otherwise(given: dict[str, str], policy: str) -> None:
    told = run("import gradosr, torch; torch.ones(9).sum()", OMP_DISPLAY_ENV="TRUE", **given).stderr
    assert f"OMP_WAIT_POLICY = '{policy}'" in told


@pytest.mark.slow
def test_there_are_no_more_threads_than_cores_allowed() -> None:
    assert run(PREPARED, LOKY_MAX_CPU_COUNT="1").stdout == "1\n"


# --- Memory ---


def limit(cgroup: Path, most: str, used: str, statistics: str) -> None:
    (cgroup / most).parent.mkdir(exist_ok=True)
    (cgroup / most).write_text("5000\n")
    (cgroup / used).write_text("3000\n")
    (cgroup / most).with_name("memory.stat").write_text(statistics)


@pytest.mark.parametrize(
    ("most", "used", "statistics", "free"),
    [
        ("memory.max", "memory.current", "anon 2000\nfile 1000\ninactive_file 700\n", 2700),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "inactive_file 1\ntotal_inactive_file 9\n",
            2009,
        ),
    ],
)
def test_what_is_free_is_what_the_container_has_left(
    most: str, used: str, statistics: str, free: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert 5000 < memory.free(on_gpu=False) < sys.maxsize  # of the machine
    limit(tmp_path, most, used, statistics)
    assert memory.free(on_gpu=False) == free


def test_a_container_may_have_no_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free(on_gpu=False) > 5000


def test_a_batch_takes_half_of_what_is_free_or_a_gibibyte(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    settings = ComputeSettings(device="cpu")
    assert choose_compute(settings).max_memory == 2**30
    limit(tmp_path, "memory.max", "memory.current", "inactive_file 0\n")
    assert choose_compute(settings).max_memory == 1000
    assert choose_compute(ComputeSettings(device="cpu", max_memory=3)).max_memory == 3 * 2**30
