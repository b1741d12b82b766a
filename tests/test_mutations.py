"""Damaged and hostile input by the thousand, through reader and scorer, in a process that has to outlive it."""

import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from bombs import archive_bombs, image_bombs, parquet_bombs
from hostile import parquet_file, tar
from mutations import mutated_image, mutated_parquet, mutated_tar
from tiny import labelled_tar, picture

from gradosr.results.part import STATUSES

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="measures and limits memory as Linux does")

IMAGES_A_SHARD = 100
MEGABYTE = 2**20
MOST_TAKEN = 1500 * MEGABYTE
"""Resident bytes that one shard may take beyond what the worker has; a Parquet value takes four times its size."""
MOST_KEPT = 32 * MEGABYTE
"""Results that nine thousand images may leave."""

Files = dict[str, bytes]


@dataclass
class Ended:
    """Fate of one shard."""

    shard: str
    part: str
    before: int
    """Bytes resident before it."""
    peak: int
    """The most bytes resident while it lasted."""
    unreadable: str | None
    """Why it has no rows."""


def lone_worker(folder: Path, archives: dict[str, Files]) -> tuple[list[Ended], str, str]:
    """The shards that a worker got through; and the one it died of, with its last words. The files stay in `folder`."""
    for kind, files in archives.items():
        (folder / kind / "archive").mkdir(parents=True)
        for name, data in files.items():
            (folder / kind / "archive" / name).write_bytes(data)
    program = Path(__file__).with_name("lone_worker.py")
    # One heap for all threads, which can be given back: the threads' own grew by 180 MiB over 20,000 images, all free.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        [sys.executable, program, folder], capture_output=True, text=True, check=False, env=environment
    )
    lines = iter([json.loads(line) for line in done.stdout.splitlines()])
    ended, last = [], "start"
    for begun in lines:
        last = begun["shard"]
        if end := next(lines, None):
            ended.append(Ended(**begun, **end))
    return ended, last if done.returncode else "", f"exit {done.returncode}: {done.stderr[-4000:]}"


def check(folder: Path, archives: dict[str, Files], images: dict[str, Files]) -> list[Ended]:
    """Send archives, and tars made of `images`, by shard, through a worker: rows or a reason for each, in bounds."""
    tars = {name: tar(members.items()) for name, members in images.items()}
    ended, died, words = lone_worker(folder, {**archives, "tar": {**archives.get("tar", {}), **tars}})
    if died in images:  # of which one? Each is a shard of its own now
        alone = {f"{name}.tar": tar([(name, data)]) for name, data in images[died].items()}
        died = f"{died}, of {lone_worker(folder / 'alone', {'tar': alone})[1] or 'no image alone'}"
    assert not died, f"{folder}: died over {died}: {words}"
    counts: dict[str, Counter[str]] = {"images": Counter(), "tar": Counter(), "parquet": Counter()}
    for shard in ended:
        kind = "parquet" if shard.shard.endswith("parquet") else "tar"
        rows = rows_of(folder / kind, shard)
        if members := images.get(shard.shard):
            assert [row["key"] for row in rows] == [f"{shard.shard}#{name}" for name in members]
        counts["images" if members else kind].update(
            ["unreadable"] if shard.unreadable else [row["status"] for row in rows]
        )
        assert shard.peak - shard.before < MOST_TAKEN, shard
    print(*(f"\n{kind}: {dict(found)}" for kind, found in counts.items()), "\n" + measures(ended))
    return ended


def rows_of(folder: Path, shard: Ended) -> list[dict[str, Any]]:
    """The rows of its part, each as a row has to be; none where it was unreadable, for a reason."""
    part = folder / "results" / "parts" / f"{shard.part}.parquet"
    if shard.unreadable is not None:
        assert not part.exists()
        assert is_reason(shard.unreadable), shard
        return []
    rows: list[dict[str, Any]] = pq.read_table(part).to_pylist()
    assert [row["row"] for row in rows] == list(range(len(rows)))
    assert len({row["key"] for row in rows}) == len(rows)
    assert sum(row["key"].endswith("#truncated") for row in rows) <= 1
    for row in rows:
        assert row["status"] in STATUSES
        if row["status"] == "ok":
            assert row["error"] is None
            assert math.isfinite(row["unknown_score"])
        else:
            assert is_reason(row["error"]), row
    return rows


def is_reason(text: str) -> bool:
    """One line; and never want of memory, which would be our fault and not the file's."""
    return 0 < len(text) < 500 and text.isprintable() and not re.search(r"memory|alloc", text, re.IGNORECASE)


def measures(ended: list[Ended]) -> str:
    most = max(ended, key=lambda shard: shard.peak - shard.before)
    peak = max(shard.peak for shard in ended)
    return f"taken: {(most.peak - most.before) >> 20} MiB ({most.shard}); peak {peak >> 20} MiB"


def image_shards(count: int) -> dict[str, Files]:
    numbers = iter(range(count))
    return {
        f"images-{start:06}.tar": dict(map(mutated_image, islice(numbers, IMAGES_A_SHARD)))
        for start in range(0, count, IMAGES_A_SHARD)
    }


def archives(tars: int, parquet_files: int) -> dict[str, Files]:
    """Behind one good file of each kind."""
    good = parquet_file({"image": [picture(0)], "label": ["cat"]})
    return {
        "tar": {"first.tar": labelled_tar(0, 2), **dict(map(mutated_tar, range(tars)))},
        "parquet": {"first.parquet": good, **dict(map(mutated_parquet, range(parquet_files)))},
    }


@pytest.mark.slow
def test_mutated_input_is_rows_or_a_reason(tmp_path: Path) -> None:
    ended = check(tmp_path, archives(40, 40), image_shards(400))
    assert len(ended) == 4 + 41 + 41


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_mutated_input_by_the_thousand_is_rows_or_a_reason(tmp_path: Path) -> None:
    assert len(check(tmp_path / "archives", archives(300, 200), {})) == 301 + 201
    ended = check(tmp_path / "images", {}, image_shards(10_000))
    assert len(ended) == 100
    print(f"kept: {(grown := ended[-1].before - ended[10].before) >> 20} MiB")
    assert grown < MOST_KEPT


@pytest.mark.slow
def test_bombs_take_what_they_are_worth(tmp_path: Path) -> None:
    """Each of these small files took gigabytes, or minutes, where its reader or decoder was left to itself."""
    ended = check(tmp_path, {"tar": archive_bombs(), "parquet": parquet_bombs()}, {"images.tar": image_bombs()})
    assert len(ended) == len(archive_bombs()) + len(parquet_bombs()) + 1
