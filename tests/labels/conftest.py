"""Fixtures that tests of labels share."""

from pathlib import Path
from typing import Any

import pytest
from gradosr.jobs.cli import run as command_line
from labelled_run import Scored, make_run


@pytest.fixture
def scored(tmp_path: Path) -> Scored:
    return make_run(tmp_path)


@pytest.fixture
def gradosr(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command as its console script does: exit code, stdout, stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = command_line(arguments)
        return (code, *capsys.readouterr())

    return call
