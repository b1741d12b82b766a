"""Sorting more objects than fit in memory."""

import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from gradosr.errors import StoreError
from gradosr.store import StoredObject, ordering
from gradosr.store.ordering import in_order

FULL = Path("/dev/full")
ODD = ["a/b", "a-b", "\udcff", "\ue000", "é", "日", ""]


def objects(number: int) -> list[StoredObject]:
    return [
        StoredObject(f"s3://b/{ODD[one % 7]}{one:05}", one, str(one), one if one % 2 else None) for one in range(number)
    ]


@pytest.mark.parametrize("number", [0, 1, 9, 10, 11, 20, 95])
def test_objects_come_sorted_however_they_were_listed(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordering, "CHUNK", 10)
    monkeypatch.setattr(ordering, "BLOCK", 3)
    wanted = sorted(objects(number), key=lambda one: one.uri)
    shuffled = random.Random(number).sample(wanted, number)
    for listed in (wanted, wanted[::-1], shuffled):
        found = list(in_order(listed))
        assert found == wanted
        assert [one.modified for one in found] == [one.modified for one in wanted]


def test_memory_does_not_grow_with_the_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordering, "CHUNK", 500)
    assert peak_bytes(8_000) - peak_bytes(2_000) < 6_000 * 50  # 300 in a list


def peak_bytes(number: int) -> int:
    listed: Iterator[StoredObject] = (StoredObject(f"s3://b/{one:09}", one, f"{one:032}") for one in range(number))
    tracemalloc.start()
    try:
        assert sum(1 for _ in in_order(listed)) == number
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_full_temporary_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordering, "CHUNK", 100)
    monkeypatch.setattr(ordering.tempfile, "TemporaryFile", lambda: FULL.open("w+b", buffering=0))
    with pytest.raises(StoreError, match=r"a long listing grows there; make room or set TMPDIR"):
        list(in_order(objects(300)))
