"""A worker prefetches the next shard while it works on this one; its parts are those of a worker that does not."""

import io
import json
import subprocess
import sys
import tarfile
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pytest
from PIL import features
from pyarrow import parquet
from tiny import local_job, picture, rows_of, run_here, write_archive

from gradosr.archive import loading
from gradosr.archive.loading import Prefetcher, PreparedImage
from gradosr.archive.shards import Shard
from gradosr.errors import FingerprintMismatch, MachineFault, ShardUnreadable
from gradosr.results.folder import RunFolder
from gradosr.results.outcome import Outcome
from gradosr.run.plan import Plan, finish, prepare
from gradosr.scoring.worker import Loading, Prefetch, ShardWorker
from gradosr.store import Store, StoredObject


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    write_archive(Store(), f"{tmp_path}/archive")
    run_here(local_job(tmp_path, output=f"{tmp_path}/alone"))
    plan = prepare(local_job(tmp_path))
    plan.claim()
    return plan


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards opened so far, and parts put so far."""
    found: list[str] = []
    open_shard, put = Store.open, RunFolder.put_part

    def noted(self: Store, stored: StoredObject) -> object:
        found.append(stored.uri[-9:-4])
        return open_shard(self, stored)

    def noted_put(self: RunFolder, part: str, body: object) -> None:
        found.append("put")
        put(self, part, body)  # type: ignore[arg-type]

    monkeypatch.setattr(Store, "open", noted)
    monkeypatch.setattr(RunFolder, "put_part", noted_put)
    return found


def ready(plan: Plan) -> ShardWorker:
    found = ShardWorker(plan.job, plan.fingerprint, threads=2)
    found.ready()
    return found


def test_a_prefetched_shard_is_opened_before_this_one_is_put(plan: Plan, tmp_path: Path, opened: list[str]) -> None:
    worker, outcome = ready(plan), Outcome()
    following: list[Shard | None] = [*plan.pending[1:], None]
    for shard, prefetched in zip(plan.pending, following, strict=True):
        if prefetched:
            worker.expect(prefetched)
        outcome.scored[shard.part] = worker.score(shard)()
    assert opened == ["00000", "00001", "put", "00002", "put", "00003", "put", "put"]
    assert all(stats.seconds["read"] > 0 for stats in outcome.scored.values())
    finish(plan, outcome)
    found, alone = rows_of(tmp_path / "results"), rows_of(tmp_path / "alone")
    assert found.keys() == alone.keys()
    assert [score for (score,) in found.values()] == pytest.approx([score for (score,) in alone.values()], abs=1e-5)


def test_a_part_that_is_put_while_the_next_shard_is_scored_is_the_same(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, scored, put = ready(plan), threading.Event(), RunFolder.put_part

    def held(self: RunFolder, part: str, body: BinaryIO) -> None:
        assert scored.wait(60), "the next shard is not scored meanwhile"
        put(self, part, body)

    monkeypatch.setattr(RunFolder, "put_part", held)
    first, second, *_ = plan.pending
    with ThreadPoolExecutor(1) as pool:
        publishing = pool.submit(worker.score(first))
        publish = worker.score(second)
        scored.set()
        assert (publishing.result().counts["rows"], publish().counts["rows"]) == (6, 6)
    for shard in (first, second):
        here, alone = (
            parquet.read_table(tmp_path / run / f"parts/{shard.part}.parquet") for run in ("results", "alone")
        )
        for name, column in zip(here.column_names, here.columns, strict=True):
            if pa.types.is_floating(column.type):  # the form of a norm is chosen by its time
                np.testing.assert_allclose(column.to_numpy(), alone[name].to_numpy(), rtol=1e-4, atol=1e-5)
            else:
                assert column.equals(alone[name])


def test_another_shard_than_the_prefetched_one_is_read_from_its_beginning(plan: Plan, opened: list[str]) -> None:
    worker = ready(plan)
    first, prefetched, other, _ = plan.pending
    worker.expect(prefetched)
    worker.score(first)()
    assert worker.score(other)().counts["rows"] == 6
    assert worker.score(prefetched)().counts["rows"] == 6
    assert opened == ["00000", "00001", "put", "00002", "put", "00001", "put"]


def test_a_worker_tells_how_far_its_shards_are(plan: Plan) -> None:
    worker, (first, second, *_) = ready(plan), plan.pending
    publish = worker.score(first)
    told = worker.underway()
    assert told.keys() == {first.part}
    assert told[first.part].images == 6
    assert 0 < told[first.part].bytes < first.size
    also = worker.score(second)
    assert worker.underway().keys() == {first.part, second.part}
    publish()
    also()
    assert worker.underway() == {}


def test_what_is_wrong_with_a_prefetched_shard_is_told_in_its_turn(plan: Plan, tmp_path: Path) -> None:
    worker = ready(plan)
    (tmp_path / "archive" / "00001.tar").write_bytes(b"not a tar" * 100)
    plan = prepare(plan.job)
    worker.expect(plan.pending[1])
    assert worker.score(plan.pending[0])().counts["rows"] == 6
    with pytest.raises(ShardUnreadable, match="not a tar archive"):
        worker.score(plan.pending[1])()
    assert worker.score(plan.pending[2])().counts["rows"] == 6


def test_a_shard_whose_put_fails_leaves_the_prefetched_one_and_no_other_open(
    plan: Plan, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no room")

    worker = ready(plan)
    first, prefetched, *_ = plan.pending
    worker.expect(prefetched)
    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "put_part", fail)
        with pytest.raises(OSError, match="no room"):
            worker.score(first)()
    assert worker.score(prefetched)().counts["rows"] == 6
    assert opened == ["00000", "00001", "put"]


# --- The prefetched shard, without any reading ---


class Loads:
    """Loadings that never begin; tests say when one is read."""

    def __init__(self) -> None:
        self.begun, self.closed = list[str](), list[str]()

    def __call__(self, shard: Shard) -> Loading:
        self.begun.append(shard.name)
        batches = Prefetcher[list[PreparedImage]](iter(()), len, budget=1)
        close = batches.close
        batches.close = lambda: (self.closed.append(shard.name), close())  # type: ignore[method-assign]
        return Loading(shard, batches, {}, threading.Event(), {}, deque())


A, B, C, D = (Shard(name, f"/{name}", "1", 1) for name in "ABCD")


def test_the_announced_shard_is_opened_once_the_one_at_work_is_read() -> None:
    loads = Loads()
    prefetch = Prefetch(loads)
    prefetch.announce(B)
    first = prefetch.take(A)
    prefetch.start()
    assert loads.begun == ["A"]
    first.read.set()
    prefetch.start()
    prefetch.start()
    assert loads.begun == ["A", "B"]
    assert prefetch.take(B).shard == B
    assert (loads.begun, loads.closed) == (["A", "B"], [])


def test_a_prefetched_shard_that_is_read_early_waits_for_its_turn_before_another_is_opened() -> None:
    loads = Loads()
    prefetch = Prefetch(loads)
    prefetch.announce(B)
    prefetch.take(A).read.set()
    prefetch.start()
    prefetch.end_turn()
    prefetch.announce(C)
    prefetch.start()  # as B does when it is read between the announcement and its turn
    assert loads.begun == ["A", "B"]
    prefetch.take(B).read.set()
    prefetch.start()
    assert (loads.begun, loads.closed) == (["A", "B", "C"], [])


def test_a_prefetched_shard_that_is_not_taken_is_closed() -> None:
    loads = Loads()
    prefetch = Prefetch(loads)
    prefetch.announce(B)
    prefetch.take(A).read.set()
    prefetch.start()
    prefetch.announce(C)
    assert prefetch.take(D).shard == D
    assert (loads.begun, loads.closed) == (["A", "B", "D"], ["B"])


def test_an_announcement_ends_with_the_shard_it_was_made_for() -> None:
    loads = Loads()
    prefetch = Prefetch(loads)
    prefetch.announce(B)
    prefetch.take(A)
    prefetch.end_turn()
    prefetch.take(C).read.set()
    prefetch.start()
    assert loads.begun == ["A", "C"]


# --- Memory, in a process of its own ---

LARGE = picture(0) + bytes(2**20)  # as phones put films behind their photographs
BOUND = 300 * 2**20


def write_large_tar(file: Path, images: int) -> None:
    with tarfile.open(file, "w") as archive:
        for number in range(images):
            member = tarfile.TarInfo(f"{number:05}.png")
            member.size = len(LARGE)
            archive.addfile(member, io.BytesIO(LARGE))


def write_large_parquet(file: Path, images: int) -> None:
    """One row group, of pages of 4 images: by default pyarrow looks at the size of a page every 1024 values."""
    table = pa.table({"image": [LARGE] * images, "label": ["cat"] * images})
    parquet.write_table(
        table, file, row_group_size=images, compression="none", use_dictionary=["label"], write_batch_size=4
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the memory of a process")
@pytest.mark.parametrize(
    ("kind", "write", "images"), [("tar", write_large_tar, 2000), ("parquet", write_large_parquet, 1000)]
)
def test_a_large_shard_takes_no_more_memory_than_its_batches_and_a_bound(
    kind: str, write: Callable[[Path, int], None], images: int, tmp_path: Path
) -> None:
    (tmp_path / kind / "archive").mkdir(parents=True)
    for name, count in (("0-warm", 64), ("1-large", images)):
        write(tmp_path / kind / "archive" / f"{name}.{kind}", count)
    program = [sys.executable, str(Path(__file__).parents[1] / "lone_worker.py"), str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    before, peak = next((line["before"], line["peak"]) for line in reversed(lines) if "peak" in line)
    assert len(rows_of(tmp_path / kind / "results")) == 64 + images
    print(f"\n{kind}: {(peak - before) / 2**20:.0f} MiB")
    assert peak - before < BOUND


def test_a_worker_whose_pillow_decodes_less_does_not_begin(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    supported = [name for name in features.get_supported() if name != "avif"]
    monkeypatch.setattr(features, "get_supported", lambda: supported)
    with pytest.raises(
        MachineFault, match=r"decoder here is .*/2 without avif, of the run .*/2: install the same Pillow"
    ):
        ready(plan)
    with pytest.raises(FingerprintMismatch, match="decoder"):
        prepare(plan.job)


def test_a_shard_that_memory_is_too_small_for_fails_and_is_scored_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> object:
        raise MemoryError

    write_archive(Store(), f"{tmp_path}/archive", shards=1)
    with monkeypatch.context() as patch:
        patch.setattr(loading, "to_input_size", full)
        _, summary = run_here(local_job(tmp_path))
    (reason,) = summary.failed.values()
    assert "png: this machine is at fault, not the data: MemoryError" in reason
    assert not (tmp_path / "results" / "_SUCCESS").exists()
    _, summary = run_here(local_job(tmp_path))
    assert (summary.failed, summary.counts["ok"]) == ({}, summary.counts["rows"])
