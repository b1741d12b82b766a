"""Columns of counts and seconds give what dictionaries give."""

import io
import json
import tracemalloc
from collections import Counter
from collections.abc import MutableMapping
from pathlib import Path

import pytest
from tiny import local_job, run_here, write_archive

from gradosr.results import stats as stats_module
from gradosr.results.folder import RunFolder
from gradosr.results.outcome import PackedStats, PartStats
from gradosr.results.part import STAGES
from gradosr.results.stats import TableStats
from gradosr.store import Store

PARTS = {
    "part-c": PartStats({"rows": 3, "ok": 2, "unknown": 1, "empty": 1}, {"read": 0.5, "score": 1.0}, {"txt": 2}),
    "part-a": PartStats({"rows": 2, "ok": 2, "unknown": 0}, {"read": 0.25}, {"txt": 1, "json": 3}),
    "part-b": PartStats({"rows": 1, "unknown": 0, "truncated": 1}, {}, {}),
    "part-d": PartStats({}, {"write": 2.0}, {"txt": 2}),
}


def written(stats: TableStats) -> TableStats:
    """The same as it is read back."""
    body = io.BytesIO()
    stats.write(body)
    return TableStats.read(io.BytesIO(body.getvalue()))


def test_columns_add_up_to_what_dictionaries_do() -> None:
    one, two = (dict(list(PARTS.items())[start : start + 2]) for start in (0, 2))
    for stats in (TableStats.of(PARTS), written(TableStats.of(one)).plus(TableStats.of({}), TableStats.of(two))):
        assert stats.counts() == sum((Counter(part.counts) for part in PARTS.values()), Counter()) | {"unknown": 1}
        assert stats.seconds() == {"read": 0.75, "score": 1.0, "write": 2.0}
        assert stats.passed_over() == {"txt": 5, "json": 3}
        assert stats.with_bad_images() == {"part-b", "part-c"}
        assert set(stats.parts) == PARTS.keys()
    some = stats.only({"part-a", "part-x"})
    assert (len(some), some.counts(), some.with_bad_images()) == (1, {"rows": 2, "ok": 2, "unknown": 0}, set())
    nothing = written(TableStats.of({}))
    assert (nothing.parts, nothing.counts(), nothing.seconds(), nothing.passed_over()) == ([], {}, {}, {})
    assert nothing.with_bad_images() == set()
    assert stats.parts == sorted(PARTS)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["older", "cut", "no part column", "gone"])
def test_figures_come_from_wherever_they_are_recorded(tmp_path: Path, damage: str) -> None:
    write_archive(Store(), f"{tmp_path}/archive")
    _, first = run_here(job := local_job(tmp_path))
    results, folder = tmp_path / "results", RunFolder(Store(), job.output)
    recorded = folder.recorded_stats()
    assert len(recorded) == 4
    if damage == "older":  # as it was before there was stats.parquet; the seconds tell that it was read
        entry = {"counts": {"rows": 6, "ok": 6, "unknown": 0}, "seconds": {"read": 1.0}}
        (results / "stats.json").write_text(json.dumps({"parts": dict.fromkeys(recorded.parts, entry)}))
    if damage in ("older", "gone"):
        (results / "stats.parquet").unlink()
    elif damage == "cut":
        (results / "stats.parquet").write_bytes((results / "stats.parquet").read_bytes()[:-9])
    else:
        (results / "stats.parquet").write_bytes(next((results / "parts").iterdir()).read_bytes())
    _, again = run_here(job)
    assert (again.counts["rows"], again.counts["ok"]) == (24, 24)
    assert (again.seconds == {"read": 4.0}) == (damage == "older")
    assert again.scored == 0
    assert first.counts["rows"] == 24


def test_packed_figures_are_those_that_were_put_in() -> None:
    packed = PackedStats()
    packed.update(PARTS)
    assert dict(packed) == PARTS
    assert (len(packed), "part-a" in packed, "part-x" in packed) == (4, True, False)
    packed["part-a"] = PARTS["part-b"]
    del packed["part-c"]
    assert dict(packed) == {"part-a": PARTS["part-b"], "part-b": PARTS["part-b"], "part-d": PARTS["part-d"]}


def test_packed_figures_take_a_third_of_what_dictionaries_do() -> None:
    def figures(number: int) -> PartStats:
        counts = {"rows": 1000 + number, "unknown": 500 + number, "ok": 900 + number}
        return PartStats(counts, dict.fromkeys(STAGES, number / 7), {"json": 1000})

    def peak_bytes(kept: MutableMapping[str, PartStats]) -> int:
        tracemalloc.start()
        try:
            kept.update((str(number), figures(number)) for number in range(2000))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak_bytes(PackedStats()) < peak_bytes({}) / 3


def test_figures_of_many_parts_are_put_into_columns_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = TableStats.of(PARTS)
    monkeypatch.setattr(stats_module, "_AT_ONCE", 2)
    assert TableStats.of(PARTS).counts() == whole.counts()
    assert TableStats.of(PARTS).parts == whole.parts
    some = whole.only({"part-a", "part-b"})
    assert (sorted(some.parts), some.counts()["rows"]) == (["part-a", "part-b"], 3)
