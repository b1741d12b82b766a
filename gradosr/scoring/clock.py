"""Seconds that a worker spends on a shard, by stage."""

import time
from collections.abc import Generator, Iterator, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


class Clock:
    """Adds the seconds spent in its block to a stage."""

    def __init__(self, seconds: dict[str, float], stage: str) -> None:
        self._seconds, self._stage = seconds, stage

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._seconds[self._stage] += time.perf_counter() - self._start


def rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    """Round to a tenth of a millisecond: one stats.json lists a hundred thousand parts."""
    return {stage: round(spent, 4) for stage, spent in seconds.items()}


def timed(items: Iterator[T], seconds: dict[str, float], stage: str) -> Generator[T, None, Any]:
    """Yield the items, add the seconds spent waiting for them to a stage, and return what their iterator returns."""
    while True:
        with Clock(seconds, stage):
            try:
                item = next(items)
            except StopIteration as end:
                return end.value
        yield item
