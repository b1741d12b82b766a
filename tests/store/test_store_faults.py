"""Whole runs over a store that fails: each fault costs time, or is told as what it is and the next run mends it.

No fault of the store is ever taken for a bad image or a bad shard.
"""

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_proxy import TRANSIENT, Fault, FaultProxy
from hostile import parquet_file
from tiny import labelled_tar, local_job, picture, rows_of, run_here, write_archive

from gradosr.config import S3Settings, ScoreJob
from gradosr.errors import AccessDenied, StoreError
from gradosr.lab.seaweedfs import SeaweedFS
from gradosr.results.folder import RunFolder
from gradosr.run.plan import prepare
from gradosr.store import Store, blocks, s3

Rows = dict[str, tuple[object, ...]]
COLUMNS = ("key", "status", "unknown_score")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an archive, a bundle and the results of a run that met no fault."""
    folder = tmp_path_factory.mktemp("home")
    write_archive(Store(), f"{folder}/archive")
    run_here(local_job(folder))
    return folder


@pytest.fixture(scope="module")
def clean(home: Path) -> Rows:
    return rows_of(home / "results", COLUMNS)


@pytest.fixture
def proxy(seaweedfs: SeaweedFS) -> Iterator[FaultProxy]:
    with FaultProxy(seaweedfs.endpoint_url) as proxy:
        yield proxy


@pytest.fixture
def job(proxy: FaultProxy, store: Store, bucket: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> ScoreJob:
    """Archive, bundle and results behind the proxy, with short pauses and little patience."""
    monkeypatch.setattr(s3, "BACKOFF_SECONDS", 0.01)
    for path in (*(home / "archive").iterdir(), *(home / "bundle").iterdir()):
        store.write(f"{bucket}/{path.relative_to(home)}", path.read_bytes())
    settings = S3Settings(endpoint_url=proxy.endpoint_url, addressing_style="path", read_timeout=0.5)
    return local_job(home, bundle=f"{bucket}/bundle", input={"kind": "tar", "uri": f"{bucket}/archive/"},
                     output=f"{bucket}/results", store=settings)  # fmt: skip


def assert_whole(job: ScoreJob, store: Store, clean: Rows) -> None:
    """A finished table with the rows of the clean run, each once."""
    table, finished = RunFolder(store, job.output).table(COLUMNS)
    assert finished
    rows = table.to_pylist()
    assert sorted(row["key"] for row in rows) == sorted(clean)
    for row in rows:
        assert row["status"] == clean[row["key"]][0]
        assert row["unknown_score"] == pytest.approx(clean[row["key"]][1], abs=1e-5)


def objects(store: Store, job: ScoreJob, folder: str) -> list[str]:
    return [stored.uri for stored in store.list(f"{job.output}/{folder}")]


@pytest.mark.slow
@pytest.mark.parametrize("fault", TRANSIENT)
def test_what_passes_costs_time_only(fault: Fault, job: ScoreJob, proxy: FaultProxy, store: Store, clean: Rows) -> None:
    proxy.chaos(random.Random(7), 0.15, [fault])
    _, summary = run_here(job)
    assert proxy.dealt[fault] > 3
    assert (summary.failed, summary.quarantined, summary.scored) == ({}, (), 4)
    assert_whole(job, store, clean)


LASTING = {
    "503": "given up after 6 attempts, the last: GetObject answered SlowDown",
    "reset": "given up after 6 attempts, the last: connection reset by peer",
    "cut": "given up after 6 attempts, the last: ",
    "stall": "given up after 6 attempts, the last: no byte within store.read_timeout",
    "expired": "the credentials have expired: renew them",
    "denied": "GetObject is forbidden: check the credentials and what they may do",
}


SLOW = {"cut", "stall"}
"""Told after all attempts, and shown by test_store.py too."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault", [pytest.param(fault, marks=[pytest.mark.slow] * (fault in SLOW)) for fault in LASTING]
)
def test_a_shard_that_fails_for_the_store_is_failed_and_mended_by_the_next_run(
    fault: Fault, job: ScoreJob, proxy: FaultProxy, store: Store, clean: Rows
) -> None:
    def begin() -> None:
        proxy.path, proxy.always = "/archive/00001", fault

    _, summary = run_here(job, started=begin)
    (reason,) = summary.failed.values()
    assert list(summary.failed) == ["00001.tar"]
    assert reason.startswith(f"{job.input.uri}00001.tar: {LASTING[fault]}")
    assert "\n" not in reason
    assert (summary.quarantined, objects(store, job, "quarantine/"), objects(store, job, "_SUCCESS")) == ((), [], [])
    proxy.always = None
    plan, summary = run_here(job)
    assert ([shard.name for shard in plan.pending], summary.scored) == (["00001.tar"], 1)
    assert_whole(job, store, clean)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["cut", "expired"])
@pytest.mark.parametrize("kind", ["parquet", "images"])
def test_no_kind_of_input_takes_a_fault_for_bad_content(
    kind: str, fault: Fault, job: ScoreJob, proxy: FaultProxy, store: Store, bucket: str
) -> None:
    for number in range(3):
        name = f"cat/{number}.png" if kind == "images" else f"{number}.parquet"
        pictures = [picture(seed) for seed in range(number * 3, number * 3 + 3)]
        body = picture(number) if kind == "images" else parquet_file({"image": pictures})
        store.write(f"{bucket}/{kind}/{name}", body)
    source = {"kind": kind, "uri": f"{bucket}/{kind}/"} | ({"group_size": 1} if kind == "images" else {})
    job = ScoreJob.model_validate(job.model_dump() | {"input": source})
    middle = "cat/1.png" if kind == "images" else "1.parquet"

    def begin() -> None:
        proxy.path, proxy.always = middle, fault

    _, summary = run_here(job, started=begin)
    (reason,) = summary.failed.values()
    assert reason.startswith(f"{bucket}/{kind}/{middle}: ")
    assert LASTING[fault] in reason
    assert (summary.quarantined, summary.counts["ok"]) == ((), summary.counts["rows"])
    proxy.always = None
    _, summary = run_here(job)
    assert (summary.failed, summary.counts["ok"]) == ({}, 3 if kind == "images" else 9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("503", "given up after 6 attempts, the last: PutObject answered SlowDown"),
        ("expired", "the credentials have expired: renew them"),
        ("denied", "PutObject is forbidden: check the credentials and what they may do"),
    ],
)
def test_a_part_that_cannot_be_written_fails_its_shard(
    fault: Fault, message: str, job: ScoreJob, proxy: FaultProxy, store: Store, clean: Rows
) -> None:
    def begin() -> None:
        proxy.method, proxy.path, proxy.always = "PUT", "/parts/part-00001", fault

    _, summary = run_here(job, started=begin)
    (reason,) = summary.failed.values()
    assert message in reason
    assert (summary.quarantined, objects(store, job, "quarantine/"), summary.scored) == ((), [], 3)
    proxy.always = None
    run_here(job)
    assert_whole(job, store, clean)


@pytest.mark.slow
def test_a_shard_replaced_while_it_is_read_is_scored_in_its_new_version(
    job: ScoreJob, proxy: FaultProxy, store: Store, clean: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 2048)
    uri, reads = f"{job.input.uri}00001.tar", []

    def replace(request: str) -> None:
        if request.startswith("GET") and request.endswith("/archive/00001.tar"):
            reads.append(request)
            if len(reads) == 5:
                store.write(uri, labelled_tar(0, 3))

    def begin() -> None:
        proxy.before = replace

    _, summary = run_here(job, started=begin)
    assert summary.failed == {"00001.tar": f"{uri}: replaced after it was listed"}
    assert (summary.quarantined, summary.counts["rows"]) == ((), 18)
    _, summary = run_here(job)
    assert (summary.failed, summary.counts["rows"], summary.counts["ok"]) == ({}, 21, 21)


def test_a_policy_that_forbids_listing_is_told_before_work(job: ScoreJob, proxy: FaultProxy, store: Store) -> None:
    proxy.path, proxy.always = "list-type=2", "denied"
    with pytest.raises(AccessDenied) as caught:
        prepare(job)
    advice = "ListObjectsV2 is forbidden: check the credentials and what they may do"
    assert str(caught.value).splitlines() == [f"{job.output}/_SUCCESS: {advice}", f"{job.input.uri}: {advice}"]
    assert objects(store, job, "") == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "message"),
    [("AWS_ACCESS_KEY_ID", "does not know this access key"), ("AWS_SECRET_ACCESS_KEY", "does not fit the access key")],
)
def test_wrong_credentials_are_told_before_work(
    variable: str, message: str, job: ScoreJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "wrong")
    with pytest.raises(AccessDenied) as caught:
        prepare(job)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3  # bundle, output and archive
    assert all(message in line for line in lines)


def test_a_server_that_cannot_be_reached_is_told_once(job: ScoreJob) -> None:
    nowhere = job.store.model_copy(update={"endpoint_url": "http://127.0.0.1:9"})
    with pytest.raises(StoreError) as caught:
        prepare(job.model_copy(update={"store": nowhere}))
    message = str(caught.value)
    assert "cannot reach http://127.0.0.1:9 in 3 attempts (connection refused)" in message
    assert "\n" not in message


# A full disk

SMALL_DISK = """
import json, sys, tempfile
from contextlib import suppress
from pathlib import Path
from subprocess import run
from tiny import local_job, run_here
from gradosr.results import part
from gradosr.errors import StoreError

folder, small = Path(sys.argv[1]), Path(sys.argv[1]) / "small"

def score(output):
    try:
        summary = run_here(local_job(folder, output=str(output)))[1]
    except StoreError as error:
        return [str(error)]
    assert not summary.quarantined
    return list(summary.failed.values()) or summary.counts["rows"]

run(["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", str(small)], check=True)
full_output = score(small / "results")
run(["mount", "-o", "remount,size=400k", str(small)], check=True)
mended_output = score(small / "results")
part.SPOOL_BYTES, tempfile.tempdir = 100, str(small)
with suppress(OSError), (small / "filler").open("wb", buffering=0) as filler:
    while True:
        filler.write(bytes(4096))
full_spool = score(folder / "spooled")
(small / "filler").unlink()
mended_spool = score(folder / "spooled")
print(json.dumps([full_output, mended_output, full_spool, mended_spool]))
"""


@pytest.mark.slow
def test_a_full_disk_is_named_and_the_run_goes_on_when_there_is_room(home: Path) -> None:
    """First the disk of the output, then the one where large parts grow: a real one of a few pages each time."""
    (home / "small").mkdir()
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*alone, "mount", "-t", "tmpfs", "tmpfs", home / "small"], check=False).returncode:
        pytest.skip("no file system can be mounted here")  # containers often forbid user namespaces
    command = [*alone, sys.executable, "-c", SMALL_DISK, str(home)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    full_output, mended_output, full_spool, mended_spool = json.loads(done.stdout)
    advice = "no space left on its disk; make room and run the same command again"
    assert full_output
    assert all(line.startswith(f"{home}/small/results/") and line.endswith(advice) for line in full_output)
    advice = "a part too large for memory grows there; make room or set TMPDIR"
    assert full_spool == [f"{home}/small: [Errno 28] No space left on device: {advice}"] * 4
    assert mended_output == mended_spool == 24
