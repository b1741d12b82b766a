"""Everything that dies, dies: workers, nodes, the driver, the store; and the table is that of a quiet run."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos import DONE, EVENTS, INCOMPLETE, KILLED, Nodes, Result, events_of, nodes, run, write_archives
from fault_proxy import FaultProxy

from gradosr.config import S3Settings
from gradosr.lab.seaweedfs import SeaweedFS
from gradosr.store import Store

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

RUNS = 25


@pytest.fixture(scope="module")
def place(seaweedfs: SeaweedFS) -> Iterator[tuple[Store, str]]:
    """A store past the proxy, and a bucket with the archives."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in seaweedfs.environment().items():
            patch.setenv(name, value)
        patch.delenv("AWS_ENDPOINT_URL")
        store = Store(S3Settings(endpoint_url=seaweedfs.endpoint_url, addressing_style="path"))
        seaweedfs.create_bucket("chaos")
        write_archives(store, "s3://chaos")
        yield store, "s3://chaos"


@pytest.fixture(scope="module")
def cluster(place: tuple[Store, str]) -> Iterator[Nodes]:  # after the keys to the store are in the environment
    with nodes() as made:
        yield made


@pytest.fixture(scope="module")
def proxy(seaweedfs: SeaweedFS) -> Iterator[FaultProxy]:
    with FaultProxy(seaweedfs.endpoint_url) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def quiet(
    cluster: Nodes, place: tuple[Store, str], proxy: FaultProxy, tmp_path_factory: pytest.TempPathFactory
) -> Result:
    found = run(None, cluster, *place, proxy, tmp_path_factory.mktemp("quiet"))
    assert found.codes == (DONE,), found.errors
    assert len(found.rows) == 60
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(RUNS))
def test_whatever_dies_the_table_is_that_of_a_quiet_run(
    seed: int, quiet: Result, cluster: Nodes, place: tuple[Store, str], proxy: FaultProxy, tmp_path: Path
) -> None:
    events = events_of(seed)
    try:
        found = run(seed, cluster, *place, proxy, tmp_path)
        print(f"\n{seed}: {', '.join(events) or 'nothing'}: {found.seconds / quiet.seconds:.2f} of the quiet run")
        bad = {"poison.tar": "poison" in events, "corrupt.tar": "corrupt" in events}
        assert found.codes[-1] == (INCOMPLETE if any(bad.values()) else DONE), found.errors
        assert set(found.codes[:-1]) <= {KILLED} if "driver" in events else not found.codes[:-1], found.errors
        assert sorted(found.keys) == sorted(quiet.keys)
        for key, score in found.rows.items():
            assert score == pytest.approx(quiet.rows[key], abs=1e-5)
        assert "Traceback" not in found.errors
        ends = time.monotonic() + 30
        while cluster.workers() and time.monotonic() < ends:
            time.sleep(0.2)
        assert not cluster.workers()
    finally:
        cluster.settle()


def test_every_event_has_a_seed() -> None:
    assert {event for seed in range(RUNS) for event in events_of(seed)} == set(EVENTS)
