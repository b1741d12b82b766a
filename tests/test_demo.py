"""The demo, as a user runs it, and killed as a user kills it."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def mentioning(folder: Path) -> list[str]:
    """Command lines of the processes that work below a folder, or were started from there."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = process.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            here = str(process.joinpath("cwd").readlink())
        except OSError:
            continue
        if str(folder) in line or here.startswith(str(folder)):
            found.append(line)
    return found


def start(folder: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "gradosr.jobs.cli", "demo", "--folder", str(folder / "demo")]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_the_demo_ends_with_the_table_and_leaves_nothing_running(tmp_path: Path) -> None:
    process = start(tmp_path)
    out, _ = process.communicate(timeout=590)
    assert process.returncode == 0, out
    assert "$ gradosr score" in out
    assert "unknown score" in out
    assert "AUROC" in out
    assert "1,065 rows" in out
    page = (tmp_path / "demo" / "audit" / "index.html").resolve()
    assert page.as_uri() in out.splitlines()[-1]
    facts = json.loads(page.with_name("audit.json").read_text())
    assert len(facts["groups"]["items"]) >= 2
    assert page.read_text().count("data:image/jpeg;base64,") > 100  # the S3 server has stopped
    assert wait_for_none(tmp_path) == []


@pytest.mark.parametrize(
    ("stage", "number"),
    [("$ gradosr fit", signal.SIGINT), ("starting Ray", signal.SIGTERM), ("| workers", signal.SIGKILL)],
    ids=["fit-INT", "Ray-TERM", "workers-KILL"],
)  # each stage and each signal once: a demo takes a minute or two to get there
def test_a_killed_demo_leaves_nothing_running(stage: str, number: int, tmp_path: Path) -> None:
    process = start(tmp_path)
    assert process.stdout
    for line in process.stdout:
        if stage in line:
            break
    else:
        pytest.fail(f"the demo ended before {stage}")
    time.sleep(1)
    process.send_signal(number)
    assert process.wait(timeout=60) != 0
    process.stdout.close()
    assert wait_for_none(tmp_path) == []


def wait_for_none(folder: Path) -> list[str]:
    """Return the processes that are still running a minute later at most."""
    deadline = time.monotonic() + 60
    while (left := mentioning(folder)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return left
