"""A real S3 server for all tests, and a bucket of its own for each."""

import os
from pathlib import Path

# Before anything imports ray: neither tokens left in the home directory nor usage reports belong in a test.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# The networks of tests are too small for more; and a test runs beside another one, or beside a whole cluster of Ray.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray workers and commands started by tests import the tests' own networks and workers.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(room) for room in (Path(__file__).parent, *sorted(Path(__file__).parent.iterdir())) if room.is_dir()]
    + [path for path in [os.environ.get("PYTHONPATH")] if path]
)

import signal
import uuid
from collections.abc import Iterator

import pytest

from gradosr.config import S3Settings
from gradosr.lab.seaweedfs import SeaweedFS
from gradosr.store import Store

# A shell's background job ignores SIGINT, and so would every command that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    with SeaweedFS(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture
def bucket(seaweedfs: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> str:
    """URI of a fresh bucket; the AWS chain of this process and its children finds the keys to it."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name, value in seaweedfs.environment().items():
        monkeypatch.setenv(name, value)
    name = f"test-{uuid.uuid4().hex[:12]}"
    seaweedfs.create_bucket(name)
    return f"s3://{name}"


@pytest.fixture
def s3_settings(seaweedfs: SeaweedFS) -> S3Settings:
    return S3Settings(endpoint_url=seaweedfs.endpoint_url, addressing_style="path")


@pytest.fixture
def store(s3_settings: S3Settings) -> Store:
    return Store(s3_settings)
