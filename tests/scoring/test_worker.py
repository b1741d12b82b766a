"""A worker opens the next shard while it works on this one, and its parts are those of a worker that does not."""

import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet
from tiny import local_job, picture, rows_of, run_here, write_archive

from gradosr.archive.shards import Shard
from gradosr.errors import ShardUnreadable
from gradosr.results.outcome import Outcome
from gradosr.run.plan import Plan, finish, prepare
from gradosr.scoring import worker
from gradosr.scoring.worker import ShardWorker
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
    open_shard, put = Store.open, worker.RunFolder.put_part

    def noted(self: Store, stored: StoredObject) -> object:
        found.append(stored.uri[-9:-4])
        return open_shard(self, stored)

    def noted_put(self: worker.RunFolder, part: str, body: object) -> None:
        found.append("put")
        put(self, part, body)  # type: ignore[arg-type]

    monkeypatch.setattr(Store, "open", noted)
    monkeypatch.setattr(worker.RunFolder, "put_part", noted_put)
    return found


def ready(plan: Plan) -> ShardWorker:
    found = ShardWorker(plan.job, plan.fingerprint, threads=2)
    found.ready()
    return found


def test_the_expected_shard_is_opened_before_this_one_is_put(plan: Plan, tmp_path: Path, opened: list[str]) -> None:
    worker, outcome = ready(plan), Outcome()
    following: list[Shard | None] = [*plan.pending[1:], None]
    for shard, expected in zip(plan.pending, following, strict=True):
        if expected:
            worker.expect(expected)
        outcome.scored[shard.part] = worker.process(shard)
    assert opened == ["00000", "00001", "put", "00002", "put", "00003", "put", "put"]
    assert all(stats.seconds["read"] > 0 for stats in outcome.scored.values())
    finish(plan, outcome)
    found, alone = rows_of(tmp_path / "results"), rows_of(tmp_path / "alone")
    assert found.keys() == alone.keys()
    assert [score for (score,) in found.values()] == pytest.approx([score for (score,) in alone.values()], abs=1e-5)


def test_another_shard_than_the_expected_one_is_read_from_its_beginning(plan: Plan, opened: list[str]) -> None:
    worker = ready(plan)
    first, expected, other, _ = plan.pending
    worker.expect(expected)
    worker.process(first)
    assert worker.process(other).counts["rows"] == 6
    assert worker.process(expected).counts["rows"] == 6
    assert opened == ["00000", "00001", "put", "00002", "put", "00001", "put"]


def test_what_is_wrong_with_the_expected_shard_is_told_in_its_turn(plan: Plan, tmp_path: Path) -> None:
    worker = ready(plan)
    (tmp_path / "archive" / "00001.tar").write_bytes(b"not a tar" * 100)
    plan = prepare(plan.job)
    worker.expect(plan.pending[1])
    assert worker.process(plan.pending[0]).counts["rows"] == 6
    with pytest.raises(ShardUnreadable, match="not a tar archive"):
        worker.process(plan.pending[1])
    assert worker.process(plan.pending[2]).counts["rows"] == 6


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
@pytest.mark.timeout(600)
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
