"""The start of a Ray of our own on a machine that is too busy for it."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from gradosr.config import RaySettings
from gradosr.run.driver import connected

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


def raylets() -> list[int]:
    """Process ids of the raylets that this process has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            program = path.joinpath("cmdline").read_bytes().partition(b"\0")[0]
            parent = int(path.joinpath("stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it ended meanwhile
            continue
        if parent == os.getpid() and program.endswith(b"/raylet/raylet"):
            found.append(int(path.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_ray_that_was_too_slow_is_stopped_and_started_again() -> None:
    halted: list[int] = []

    def halt_the_first() -> None:
        while not halted:
            for raylet in raylets():
                os.kill(raylet, signal.SIGSTOP)
                halted.append(raylet)
            time.sleep(0.01)

    thread = threading.Thread(target=halt_the_first)
    thread.start()
    with connected(RaySettings(), {}):
        thread.join()
        assert raylets() != []
        assert halted[0] not in raylets()
    assert raylets() == []
