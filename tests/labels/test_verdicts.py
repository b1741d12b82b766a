"""Opinions of several people: kept, merged, and where they contradict each other, told."""

from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from gradosr.errors import InputError
from gradosr.labels import conflicts, read_labels, verdicts
from gradosr.labels.folder import rows_of, write_labels
from gradosr.store import Store

CLASSES = ("cat", "African elephant")
NOON = datetime(2026, 11, 1, 12, tzinfo=timezone.utc)


def opinion(key, label, who="anna", minutes=0, shard=None, drawn=None, source="csv"):
    when = NOON + timedelta(minutes=minutes)
    return {"key": key, "label": label, "who": who, "when": when, "shard": shard, "drawn": drawn, "source": source}


def test_a_known_class_is_known_and_any_other_name_is_unknown():
    said = {"a": "cat", "b": "known", "c": "unknown", "d": "okapi", "e": "African elephant"}
    found = verdicts(rows_of([opinion(key, label) for key, label in said.items()]), CLASSES)
    assert dict(zip(found["key"].to_pylist(), found["unknown"].to_pylist(), strict=True)) == {
        "a": False, "b": False, "c": True, "d": True, "e": False,
    }  # fmt: skip
    assert found["label"].to_pylist() == list(said.values())


def test_the_latest_opinion_of_each_person_counts():
    rows = [opinion("a", "okapi", minutes=5), opinion("a", "cat", minutes=9), opinion("a", "zebra", minutes=1)]
    assert verdicts(rows_of(rows), CLASSES).to_pylist() == [
        {"key": "a", "shard": None, "label": "cat", "unknown": False, "drawn": None}
    ]
    assert conflicts(rows_of(rows), CLASSES) == []


@pytest.mark.parametrize(
    ("labels", "verdict"),
    [
        (("okapi", "zebra"), None),  # on the class
        (("cat", "unknown"), None),  # on known and unknown
        (("cat", "African elephant"), None),
        (("okapi", "zebra", "unknown"), None),
        (("known", "okapi"), None),
        (("okapi", "unknown"), "okapi"),  # a name says more
        (("known", "cat"), "cat"),
        (("okapi", "okapi"), "okapi"),
        (("unknown", "unknown"), "unknown"),
    ],
)
def test_two_people_agree_or_are_told_of(labels, verdict):
    rows = rows_of([opinion("a", label, who=f"person {place}") for place, label in enumerate(labels)])
    found = verdicts(rows, CLASSES)["label"].to_pylist()
    assert found == ([] if verdict is None else [verdict])
    told = conflicts(rows, CLASSES)
    assert told == ([{"key": "a", "opinions": dict(zip([f"person {i}" for i in range(9)], labels, strict=False))}]
                    if verdict is None else [])  # fmt: skip


def test_a_shard_that_one_source_tells_is_kept():
    rows = [opinion("a", "unknown"), opinion("a", "unknown", who="ben", shard="s.tar", drawn=0.5)]
    assert verdicts(rows_of(rows), CLASSES).to_pylist()[0]["shard"] == "s.tar"


@pytest.mark.parametrize("scheme", ["", "memory://labels/"])
def test_imports_lie_beside_each_other_and_the_same_one_is_there_once(tmp_path: Path, scheme):
    run = f"{scheme}{tmp_path}/run"
    store = Store()
    assert read_labels(store, run).num_rows == 0
    first = write_labels(store, run, rows_of([opinion("a", "cat")]))
    assert write_labels(store, run, rows_of([opinion("a", "cat", minutes=3)])) is None
    second = write_labels(store, run, rows_of([opinion("a", "okapi", who="ben")]))
    assert first is not None
    assert second is not None
    assert first < second
    merged = read_labels(store, run)
    assert merged["who"].to_pylist() == ["anna", "ben"]
    assert merged["when"].to_pylist()[0] == NOON


def test_a_damaged_file_is_named(tmp_path: Path):
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "labels-1-2.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match=r"labels-1-2\.parquet: not a file of labels, or damaged"):
        read_labels(Store(), str(tmp_path))
