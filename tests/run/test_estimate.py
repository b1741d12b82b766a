"""Estimates of a dry run; that its figures come close to a run's is measured, not tested."""

import pytest

from gradosr.archive.shards import Shard
from gradosr.run.estimate import makespan, spread


def shards(count: int) -> list[Shard]:
    return [Shard(f"{number}", f"/{number}", "v", 1) for number in range(count)]


@pytest.mark.parametrize(
    ("there", "chosen"), [(1, ["0"]), (3, ["0", "1", "2"]), (4, ["0", "2", "3"]), (100, ["16", "50", "83"])]
)
def test_samples_are_spread_over_the_listing(there: int, chosen: list[str]) -> None:
    assert [shard.name for shard in spread(shards(there), 3)] == chosen


@pytest.mark.parametrize(
    ("sizes", "workers", "longest"), [([3, 3, 3], 1, 9), ([3, 3, 3], 2, 6), ([1, 1, 9], 3, 9), ([4, 1, 1, 1], 2, 4)]
)
def test_the_last_shard_ends_the_run(sizes: list[int], workers: int, longest: int) -> None:
    assert makespan(sizes, workers) == longest
