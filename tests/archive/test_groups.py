"""Groups of single images: what forms one, what keeps it, and that the listing is never in memory whole."""

import hashlib
import json
import random
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from gradosr.archive import pieces
from gradosr.archive.groups import Record, Recording, Regrouped, list_groups
from gradosr.archive.pieces import members
from gradosr.archive.shards import Shard
from gradosr.config import ImagesInput
from gradosr.errors import InputError, NotFound, StoreError
from gradosr.store import Store, StoredObject

URI = "s3://pictures/all/"


class Listed(Store):
    """A store whose objects are whatever stands in `versions`; the rest is local files."""

    def __init__(self, versions: dict[str, str]) -> None:
        super().__init__()
        self.versions = versions

    def list(self, uri: str) -> Iterator[StoredObject]:
        return (StoredObject(uri + name, len(name), version) for name, version in self.versions.items())

    def stat(self, uri: str) -> StoredObject:
        raise NotFound(uri)


def listed(versions: dict[str, str]) -> Listed:
    return Listed(dict(sorted(versions.items())))


def images(size: int = 2) -> ImagesInput:
    return ImagesInput(uri=URI, group_size=size)


def recording(found: Regrouped) -> Recording:
    """Return the record that a run folder would have afterwards."""
    return Recording(found.groups, tuple(found.new.pieces))


def names(shards: list[Shard], store: Store) -> dict[str, list[str]]:
    return {shard.name: [one.uri.removeprefix(URI) for one in members(shard, store)] for shard in shards}


def test_images_form_groups_in_order_of_their_names() -> None:
    store = listed({"b.jpg": "2", "a.PNG": "1", "c/d.webp": "3", "notes.txt": "4"})
    counts = Counter[str]()
    shards, found = list_groups(images(), store, Record(), counts)
    assert counts == {"txt": 1}
    assert names(shards, store) == {"group-000001": ["a.PNG", "b.jpg"], "group-000002": ["c/d.webp"]}
    assert members(shards[0], store) == [StoredObject(f"{URI}a.PNG", 5, "1"), StoredObject(f"{URI}b.jpg", 5, "2")]
    assert (shards[0].uri, shards[0].size) == (f"{URI}#group-000001", 10)
    assert shards[0].version == hashlib.sha256(b'[["a.PNG", "1"], ["b.jpg", "2"]]').hexdigest()
    again, nothing = list_groups(images(), store, Record([recording(found)]))
    assert (again, nothing.groups, nothing.new.pieces, nothing.changed.pieces) == (shards, 0, [], [])
    assert names(again, store) == names(shards, store)


def test_images_added_later_form_new_groups() -> None:
    store = listed({"b.jpg": "", "d.jpg": "", "f.jpg": ""})
    before, first = list_groups(images(), store, Record())
    store = listed(store.versions | {"a.jpg": "", "c.jpg": "", "e.jpg": ""})
    after, second = list_groups(images(3), store, Record([recording(first)]))
    assert after[:2] == before
    # The half-full group of f.jpg is not topped up.
    assert names(after, store)["group-000003"] == ["a.jpg", "c.jpg", "e.jpg"]
    assert second.groups == 1


def test_vanished_images_leave_their_group_and_an_empty_group_is_no_shard() -> None:
    store = listed({f"{name}.jpg": "" for name in "abcdef"})
    before, found = list_groups(images(), store, Record())
    record = Record([recording(found)])
    fewer = listed({f"{name}.jpg": "" for name in "aef"})
    after, second = list_groups(images(), fewer, record)
    assert names(after, fewer) == {"group-000001": ["a.jpg"], "group-000003": ["e.jpg", "f.jpg"]}
    assert after[0].version != before[0].version
    assert (after[1], second.groups, len(second.changed.pieces)) == (before[2], 0, 1)
    assert list_groups(images(), store, record)[0] == before  # and they come back to it


def test_a_changed_image_changes_its_groups_version_alone() -> None:
    store = listed({"a.jpg": "1", "b.jpg": "1", "c.jpg": "1"})
    before, found = list_groups(images(), store, Record())
    store.versions["a.jpg"] = "2"
    after, changed = list_groups(images(), store, Record([recording(found)]))
    assert (after[0].uri, after[1]) == (before[0].uri, before[1])
    assert after[0].version != before[0].version
    assert [one.version for one in members(after[0], store)] == ["2", "1"]
    settled = Record([recording(found)], settled={after[0].part})
    assert list_groups(images(), store, settled)[1].changed.pieces == []  # nobody will read it
    assert changed.groups == 0


def test_groups_recorded_by_name_alone_keep_their_numbers_and_images() -> None:
    store = listed({f"{name}.jpg": name for name in "abcdef"})
    old = [Recording(2, names=[["b.jpg", "d.jpg"], ["f.jpg"]]), Recording(1, names=[["a.jpg"]])]
    shards, found = list_groups(images(), store, Record(old))
    assert names(shards, store) == {
        "group-000001": ["b.jpg", "d.jpg"],
        "group-000002": ["f.jpg"],
        "group-000003": ["a.jpg"],
        "group-000004": ["c.jpg", "e.jpg"],
    }
    assert found.groups == 1
    with pytest.raises(InputError, match=r"groups/0\.json: the record of groups is damaged \(a\.jpg stands after c"):
        list_groups(images(), store, Record([Recording(1, names=[["c.jpg", "a.jpg"]], uri="groups/0.json")]))


def test_a_damaged_or_missing_piece_is_told_in_one_line(tmp_path: Path) -> None:
    store, piece = listed({"a.jpg": ""}), str(tmp_path / "piece.parquet")
    with pytest.raises(NotFound, match=r"piece\.parquet: no such file"):
        list_groups(images(), store, Record([Recording(1, [piece])]))
    Path(piece).write_bytes(b"no Parquet file")
    for use in (
        lambda: list_groups(images(), store, Record([Recording(1, [piece])])),
        lambda: members(Shard("group-000001", f"{URI}#group-000001", "", 0, piece=piece), store),
    ):
        with pytest.raises(InputError, match=r"piece\.parquet: the record of groups is damaged \(.+\); choose another"):
            use()


def test_a_store_that_does_not_list_in_order_is_refused() -> None:
    with pytest.raises(StoreError, match=r"all/a\.jpg: listed after s3://pictures/all/b\.jpg"):
        list_groups(images(), Listed({"b.jpg": "", "a.jpg": ""}), Record())


def in_dictionaries(versions: dict[str, str], record: list[list[str]], size: int) -> list[tuple[str, list[str], str]]:
    """Name, images and version of each group, and the record with its new groups: obviously right, all in memory."""
    known = {name for group in record for name in group}
    fresh = sorted(versions.keys() - known)
    record += [fresh[start : start + size] for start in range(0, len(fresh), size)]
    found = []
    for number, group in enumerate(record, start=1):
        if left := [name for name in group if name in versions]:
            digest = hashlib.sha256(json.dumps([[name, versions[name]] for name in left]).encode()).hexdigest()
            found.append((f"group-{number:06}", left, digest))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_nights_of_changes_give_what_dictionaries_give(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images come, change, go and come back, under names in several scripts and bytes that are not UTF-8."""
    monkeypatch.setattr(pieces, "PIECE_IMAGES", 7)
    chance = random.Random(seed)
    pool = [f"{letter}{number}.jpg" for letter in ("a", "Z/", "é", "\udcff", "\ue000", "😀") for number in range(12)]
    slow, recordings, kept = list[list[str]](), list[Recording](), list[Regrouped]()
    for _ in range(8):
        versions = {name: str(chance.randrange(2)) for name in chance.sample(pool, chance.randrange(1, len(pool)))}
        store = listed(versions)
        shards, found = list_groups(images(5), store, Record(recordings))
        expected = in_dictionaries(versions, slow, 5)
        assert [(one.name, names([one], store)[one.name], one.version) for one in shards] == expected
        assert all(
            one.version == versions[one.uri.removeprefix(URI)] for group in shards for one in members(group, store)
        )
        kept.append(found)
        recordings += [recording(found)] if found.groups else []
    assert len(recordings) > 2


def test_memory_does_not_grow_with_the_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_IMAGES", 500)
    few, many = peak_bytes(4_000), peak_bytes(16_000)
    assert many - few < 12_000 * 50  # what 12 shards more take; in dictionaries an image alone takes 600


def peak_bytes(number: int) -> int:
    """The most bytes in use while that many objects are listed twice, the second time against their record."""

    class Many(Listed):
        def list(self, uri: str) -> Iterator[StoredObject]:
            return (StoredObject(f"{uri}{place:09}.jpg", place, f"{place:032}") for place in range(number))

    store = Many({})
    tracemalloc.start()
    try:
        shards, found = list_groups(images(1000), store, Record())
        list_groups(images(1000), store, Record([recording(found)]))
        assert len(shards) == number // 1000
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
