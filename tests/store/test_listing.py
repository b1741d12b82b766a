"""Listing folders side by side: the same objects as one after the other, few requests more, and no fault lost."""

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from fault_proxy import FaultProxy

from gradosr.config import S3Settings
from gradosr.errors import StoreError
from gradosr.lab.seaweedfs import SeaweedFS
from gradosr.store import Store, StoredObject, listing, s3
from gradosr.store.listing import Page, listed

PAGE = 10


class Tree:
    """Keys as S3 lists them, PAGE entries at a time; `asked` are the requests so far."""

    def __init__(self, keys: list[str], before: Callable[[str, str], None] = lambda *_: None) -> None:
        self.keys, self.asked, self._before = sorted(keys), list[tuple[str, str]](), before

    def pages(self, uri: str, delimiter: str) -> Iterator[Page]:
        below = [key for key in self.keys if key.startswith(uri)]
        if delimiter:
            ends = ((key, key.find("/", len(uri))) for key in below)
            below = list(dict.fromkeys(key if end < 0 else key[: end + 1] for key, end in ends))
        for start in range(0, max(len(below), 1), PAGE):
            self.asked.append((uri, delimiter))
            self._before(uri, delimiter)
            page = below[start : start + PAGE]
            objects = [StoredObject(key, 1, "") for key in page if not key.endswith("/")]
            yield Page(objects, [key for key in page if key.endswith("/")], start + PAGE >= len(below))


def found(tree: Tree, uri: str = "s3://b/") -> list[str]:
    return sorted(one.uri for one in listed(uri, tree.pages))


@pytest.mark.parametrize("seed", range(30))
def test_every_object_is_listed_once_whatever_the_folders(seed: int) -> None:
    draw = random.Random(seed)
    steps, depth = [f"{letter}{'-' * (letter > 'c')}" for letter in "abcdef"[: draw.randint(1, 6)]], draw.randint(0, 4)
    number = draw.choice([0, 5, 10, 11, 100, 1000])
    keys = ["/".join(["s3://b", *draw.choices(steps, k=draw.randint(0, depth)), f"{one}.png"]) for one in range(number)]
    assert found(Tree(keys)) == sorted(keys)
    assert found(Tree(keys), "s3://b/a") == sorted(key for key in keys if key.startswith("s3://b/a"))


def test_what_fits_on_a_page_takes_one_request() -> None:
    tree = Tree([f"s3://b/{folder}/{one}" for folder in "ab" for one in range(5)])
    assert len(found(tree)) == 10
    assert tree.asked == [("s3://b/", "")]


def test_large_folders_are_listed_one_by_one() -> None:
    tree = Tree([f"s3://b/2026/{folder}/{one:03}" for folder in "abc" for one in range(100)])
    assert len(found(tree)) == 300
    assert {uri for uri, delimiter in tree.asked if not delimiter} >= {f"s3://b/2026/{folder}/" for folder in "abc"}
    assert len(tree.asked) <= 30 + 6


def test_folders_of_few_objects_are_listed_together() -> None:
    tree = Tree([f"s3://b/{folder}/{one}" for folder in "abcdefgh" for one in range(2)])
    assert len(found(tree)) == 16
    assert [uri for uri, delimiter in tree.asked if not delimiter] == ["s3://b/"] * 2


def test_one_large_folder_takes_one_request_more() -> None:
    tree = Tree([f"s3://b/{one:03}" for one in range(100)])
    assert len(found(tree)) == 100
    assert len(tree.asked) == 11


def test_folders_are_listed_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "SIDE_BY_SIDE", 3)
    met = threading.Barrier(3)

    def before(uri: str, delimiter: str) -> None:
        if not delimiter and uri.count("/") == 4:
            met.wait(60)  # for the two others, which would never come one after the other

    tree = Tree([f"s3://b/{folder}/{one}" for folder in "abc" for one in range(10)], before)
    assert len(found(tree)) == 30


def test_pages_wait_on_no_more_than_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "SIDE_BY_SIDE", 3)
    tree = Tree([f"s3://b/{folder}/{one:03}" for folder in "abc" for one in range(100)])
    objects = listed("s3://b/", tree.pages)
    for _ in range(11):
        next(objects)
    assert len([uri for uri, delimiter in tree.asked if not delimiter and uri != "s3://b/"]) <= 3 + 2


@pytest.fixture
def many(store: Store, bucket: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """URIs in an order that is not SeaweedFS's own."""
    monkeypatch.setattr(s3, "PAGE", 20)
    names = [f"{folder}/{one:03}.png" for folder in ("2025/a", "2025/a-b", "2026", "é") for one in range(60)]
    uris = [f"{bucket}/in/{name}" for name in [*names, "0.png", "2025/a.png", "2025-1.png", "z.png"]]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda uri: store.write(uri, b"x"), uris))
    return sorted(uris)


def test_a_real_server_lists_the_same_side_by_side(
    many: list[str], store: Store, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = list(store.list(f"{bucket}/in/"))
    monkeypatch.setattr(listing, "FOLDERS_A_PAGE", 0)
    serial = list(store.list(f"{bucket}/in/"))
    assert beside == serial
    assert [one.modified for one in beside] == [one.modified for one in serial]
    assert [one.uri for one in beside] == many


def test_a_folder_that_cannot_be_listed_ends_the_listing(
    many: list[str], seaweedfs: SeaweedFS, s3_settings: S3Settings, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "SIDE_BY_SIDE", 2)
    with FaultProxy(seaweedfs.endpoint_url) as proxy:
        proxy.path, proxy.always = "prefix=in%2F2026%2F", "denied"
        store = Store(s3_settings.model_copy(update={"endpoint_url": proxy.endpoint_url}))
        with pytest.raises(StoreError) as caught:
            list(store.list(f"{bucket}/in/"))
        asked = [seen for seen in proxy.seen if "prefix=in%2F2025%2F" in seen and "delimiter" not in seen]
    assert str(caught.value).startswith(f"{bucket}/in/2026/: ListObjectsV2 is forbidden")
    assert "\n" not in str(caught.value)
    assert asked, "it is one of several that are listed side by side"
