"""Threads of the computation."""

import os
import subprocess
import sys

import pytest

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


@pytest.mark.parametrize(("given", "policy"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_threads_that_wait_for_each_other_sleep_unless_told_otherwise(given: dict[str, str], policy: str) -> None:
    told = run("import gradosr, torch; torch.ones(9).sum()", OMP_DISPLAY_ENV="TRUE", **given).stderr
    assert f"OMP_WAIT_POLICY = '{policy}'" in told


def test_there_are_no_more_threads_than_cores_allowed() -> None:
    assert run(PREPARED, LOKY_MAX_CPU_COUNT="1").stdout == "1\n"
