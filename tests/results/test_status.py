"""The state of a run, from its results folder alone."""

import json
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from tiny import local_job, run_here, write_archive

from gradosr.config import S3Settings
from gradosr.errors import InputError
from gradosr.results.lease import EXPIRES
from gradosr.results.status import RunStatus, read_status, status_report
from gradosr.store import Store


def write_lease(folder: Path, seconds_ago: float, *, released: bool = False, **progress: Any) -> None:
    renewed = datetime.now(timezone.utc) - timedelta(seconds=seconds_ago)
    document = {
        "token": "t", "host": "head", "pid": 7, "job": "gradosr-0123456789ab-2", "released": released,
        "renewed_at": renewed.isoformat(), "progress": progress,
    }  # fmt: skip
    (folder / "lease.json").write_text(json.dumps(document))


def status_of(folder: Path) -> RunStatus:
    return read_status(Store(), f"{folder}/results")


@pytest.fixture
def half_done(tmp_path: Path) -> Path:
    """A run of four shards of which two failed."""
    write_archive(Store(), f"{tmp_path}/archive")
    run_here(local_job(tmp_path), only=2)
    return tmp_path


def test_a_finished_run(tmp_path: Path) -> None:
    write_archive(Store(), f"{tmp_path}/archive", shards=3)
    (tmp_path / "archive" / "00002.tar").write_bytes(b"not a tar" * 100)
    run_here(local_job(tmp_path))
    status = status_of(tmp_path)
    assert (status.state, status.shards, status.done, status.missing) == ("finished", 3, 2, 0)
    assert (status.quarantined, status.failed, status.images, status.images_complete) == (1, 0, 12, True)
    assert list(status.reasons["quarantined"]) == [f"{tmp_path}/archive/00002.tar"]
    report = status_report(status)
    assert "2 of 3 done, 0 missing, 0 failed, 1 quarantined" in report
    assert status.reasons["quarantined"][f"{tmp_path}/archive/00002.tar"] in report


def test_a_run_with_failed_shards_tells_why(half_done: Path) -> None:
    status = status_of(half_done)
    assert (status.state, status.done, status.missing, status.failed, status.images) == ("unknown", 2, 2, 2, 12)
    assert status.reasons["failed"]["00003.tar"] == "left for later"
    assert "failed       00003.tar: left for later" in status_report(status)


def test_a_driver_at_work(half_done: Path) -> None:
    (half_done / "results" / "parts" / "part-new.parquet").touch()
    write_lease(
        half_done / "results", 2, archive_shards=10, pending_shards=8, done=2, failed=1, quarantined=0, workers=1,
        rows=40, ok=40, unknown=3, seconds=20.0,
    )  # fmt: skip
    status = status_of(half_done)
    assert (status.state, status.shards, status.done, status.missing, status.failed) == ("running", 10, 3, 7, 1)
    assert (status.images, status.images_complete) == (52, True)
    assert (status.images_per_second, status.eta) == (2.0, 60.0)
    assert status.sign_of_life is not None
    assert EXPIRES > status.sign_of_life >= 2
    report = status_report(status)
    assert "a driver is at work" in report
    assert "52, 2/s, ETA 1:00" in report
    assert "head (pid 7, job gradosr-0123456789ab-2)" in report
    assert "left for later" not in report  # the shard is being tried again


def test_parts_that_nobody_counted_yet(half_done: Path) -> None:
    (half_done / "results" / "parts" / "part-new.parquet").touch()
    status = status_of(half_done)
    assert (status.images, status.images_complete) == (12, False)
    assert "at least 12" in status_report(status)


@pytest.mark.parametrize(("age", "released", "state"), [(2, True, "ended"), (EXPIRES + 60, False, "silent")])
def test_a_driver_that_is_gone(half_done: Path, age: float, released: bool, state: str) -> None:
    progress = {"archive_shards": 4, "pending_shards": 4, "done": 4, "failed": 2, "quarantined": 0, "rows": 12}
    write_lease(half_done / "results", age, released=released, **progress, seconds=3.0)
    status = status_of(half_done)
    assert (status.state, status.eta, status.failed) == (state, None, 2)
    assert (status.images, status.images_complete) == (12, True)  # not counted twice
    assert "the same command goes on" in status_report(status)


def test_reasons_are_text_and_few(half_done: Path) -> None:
    quarantine = half_done / "results" / "quarantine"
    quarantine.mkdir()
    for i in range(12):
        (quarantine / f"part-{i:02}.json").write_text(json.dumps({"shard": f"\x1b[31m{i}", "reason": "bad"}))
    report = status_report(status_of(half_done))
    assert "\x1b" not in report
    assert report.count("bad") == 10
    assert "quarantined  ... and 2 more" in report


def test_no_run_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no results there"):
        status_of(tmp_path)


def test_no_bucket_there(bucket: str, s3_settings: S3Settings) -> None:
    with pytest.raises(InputError, match=f"no results there \\({bucket}x: no such bucket\\)"):
        read_status(Store(s3_settings), f"{bucket}x/results")


def test_the_command_needs_neither_ray_nor_torch(half_done: Path) -> None:
    code = (
        "import sys; from gradosr.jobs.cli import run;"
        f"assert run(['status', {f'{half_done}/results'!r}, '--json']) == 0;"
        "assert not {'torch', 'ray'} & set(sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60).stdout
    facts = json.loads(out)
    assert (facts["done"], facts["missing"], facts["reasons"]["failed"]["00002.tar"]) == (2, 2, "left for later")
