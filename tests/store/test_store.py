"""One suite for every scheme of the table, over real folders and a real S3 server; then networks, users and disks."""

import errno
import fcntl
import io
import json
import os
import random
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fault_proxy import Fault, FaultProxy

from gradosr.config import S3Settings
from gradosr.errors import AccessDenied, ConfigError, NoConditionalWrites, NotFound, ObjectChanged, StoreError
from gradosr.lab.seaweedfs import SeaweedFS
from gradosr.store import BACKENDS, Store, StoredObject, blocks, join, local, s3, scheme_of

ODD_NAMES = ["a b", "a#b", "a%20b", "a+b", "a?b=c", "a&b;c", "ü/日本", "a:b", "a'b\"", "~a", "(a)*[b]", "=", "a..b"]
ODD_NAMES += ["e\u0301", "\u00e9", "a\tb", "a\u2028b"]  # the first two look alike


class Place(NamedTuple):
    store: Store
    folder: str


@pytest.fixture(params=[*BACKENDS, "toy"], ids=lambda scheme: scheme or "path")
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A store and an empty folder in it, for each scheme of the table and for one that is not in it."""
    if request.param == "toy":
        return Place(Store(), request.getfixturevalue("toy"))
    if BACKENDS[request.param].buckets:  # each such scheme can be asked to talk to an S3 server
        return in_bucket(request, request.param)
    if BACKENDS[request.param].module == BACKENDS[""].module:
        return Place(Store(), f"{request.param}://{tmp_path}".removeprefix("://"))
    return Place(Store(), f"{request.param}://{uuid.uuid4().hex}")


@pytest.fixture(params=[name for name, scheme in BACKENDS.items() if scheme.buckets])
def bucket_place(request: pytest.FixtureRequest) -> Place:
    """A store and an empty bucket in it, for each scheme that has buckets."""
    return in_bucket(request, request.param)


def in_bucket(request: pytest.FixtureRequest, scheme: str) -> Place:
    return Place(request.getfixturevalue("store"), request.getfixturevalue("bucket").replace("s3", scheme, 1))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 64 * 1024)
    return blocks.BLOCK_BYTES


def put(place: Place, name: str, body: bytes) -> StoredObject:
    uri = join(place.folder, name)
    assert place.store.write(uri, body)
    return place.store.stat(uri)


def names(place: Place, prefix: str = "") -> list[str]:
    listed = place.store.list(join(place.folder, prefix))
    return [stored.uri.removeprefix(join(place.folder, "")) for stored in listed]


# Every backend


def test_a_listing_is_recursive_in_order_and_by_prefix(place: Place) -> None:
    keys = ["b", "a/b", "a-b", "a b", "a/c/d", "a0", "a/b.x", "Z", "é", "a/c-/d"]
    for key in keys:
        put(place, key, key.encode())
    assert names(place) == sorted(keys)
    assert names(place, "a/") == ["a/b", "a/b.x", "a/c-/d", "a/c/d"]
    assert names(place, "a/c") == ["a/c-/d", "a/c/d"]
    assert names(place, "a") == sorted(key for key in keys if key.startswith("a"))
    assert names(place, "nothing") == []


def test_folders_are_told_without_what_lies_in_them(place: Place) -> None:
    for key in ("b", "a/b", "a/c/d", "a-b/c", "é/x", "a0"):
        put(place, f"top/{key}", b"x")
    assert place.store.folders(join(place.folder, "top/")) == ["a", "a-b", "é"]
    assert place.store.folders(join(place.folder, "top/a/")) == ["c"]
    assert place.store.folders(join(place.folder, "top/é/")) == []


def test_a_listed_object_is_what_stat_says(place: Place) -> None:
    stored = put(place, "x/y", b"12345")
    assert list(place.store.list(join(place.folder, "x/"))) == [stored]
    assert stored.size == 5


def test_names_are_verbatim(place: Place) -> None:
    for name in ODD_NAMES:
        stored = put(place, name, name.encode())
        assert place.store.read(stored.uri) == name.encode()
        with place.store.open(stored) as file:
            assert file.read() == name.encode()
    assert names(place) == sorted(ODD_NAMES)
    for name in ODD_NAMES:
        place.store.move(join(place.folder, name), join(place.folder, f"moved/{name}"))
    assert names(place) == sorted(f"moved/{name}" for name in ODD_NAMES)


def test_a_write_replaces_and_makes_a_new_version(place: Place) -> None:
    before = put(place, "x", b"first")
    after = put(place, "x", b"second")
    assert place.store.read(after.uri) == b"second"
    assert before.version != after.version


def test_a_file_is_written_from_its_beginning(place: Place) -> None:
    with tempfile.SpooledTemporaryFile(max_size=10) as body:
        body.write(b"0123456789abcdef")
        place.store.write(join(place.folder, "x"), cast(BinaryIO, body))
    assert place.store.read(join(place.folder, "x")) == b"0123456789abcdef"


def test_if_absent_the_first_counts(place: Place) -> None:
    uri = join(place.folder, "x")
    assert place.store.write(uri, b"first", if_absent=True)
    assert not place.store.write(uri, b"second", if_absent=True)
    assert place.store.read(uri) == b"first"


def test_if_absent_one_of_many_writers_counts(place: Place) -> None:
    uri = join(place.folder, "x")
    bodies = [f"writer {number}".encode() for number in range(8)]
    with ThreadPoolExecutor(len(bodies)) as pool:
        written = list(pool.map(lambda body: place.store.write(uri, body, if_absent=True), bodies))
    assert written.count(True) == 1
    assert place.store.read(uri) == bodies[written.index(True)]


def test_an_exchange_is_for_the_version_that_it_names(place: Place) -> None:
    uri = join(place.folder, "x")
    assert place.store.exchange(uri, b"never", "0" * 32) is None
    first = place.store.exchange(uri, b"first", None)
    assert first == place.store.stat(uri).version
    assert place.store.exchange(uri, b"never", None) is None
    second = place.store.exchange(uri, b"other", first)
    assert second == place.store.stat(uri).version
    for outdated in (first, None, "0" * 32):
        assert place.store.exchange(uri, b"never", outdated) is None
    assert place.store.read(uri) == b"other"
    place.store.move(uri, join(place.folder, "elsewhere"))
    assert place.store.exchange(uri, b"never", second) is None
    assert names(place) == ["elsewhere"]


@pytest.mark.slow
def test_one_of_many_exchanges_counts(place: Place) -> None:
    uri, version = join(place.folder, "x"), None
    versions = set()
    with ThreadPoolExecutor(8) as pool:
        for turn in range(4):
            bodies = [f"turn {turn} of {number}".encode() for number in range(8)]
            made = list(pool.map(place.store.exchange, [uri] * 8, bodies, [version] * 8))
            ((winner, version),) = [(number, one) for number, one in enumerate(made) if one]
            assert place.store.read(uri) == bodies[winner]
            versions.add(version)
    assert len(versions) == 4


def test_a_move_leaves_nothing_behind(place: Place) -> None:
    stored = put(place, "from", b"body")
    put(place, "to/x", b"old")
    place.store.move(stored.uri, join(place.folder, "to/x"))
    assert names(place) == ["to/x"]
    assert place.store.read(join(place.folder, "to/x")) == b"body"


def test_what_is_missing_is_named(place: Place) -> None:
    uri = join(place.folder, "gone")
    for call in (place.store.stat, place.store.read, lambda uri: place.store.move(uri, f"{uri}-2")):
        with pytest.raises(NotFound) as caught:
            call(uri)
        assert str(caught.value).startswith(f"{uri}: no such ")


def test_only_the_listed_version_is_read(place: Place) -> None:
    replaced = put(place, "replaced", b"old")
    put(place, "replaced", b"newer")
    removed = put(place, "removed", b"old")
    place.store.move(removed.uri, join(place.folder, "elsewhere"))
    for stored, happened in ((replaced, "replaced"), (removed, "removed")):
        with pytest.raises(ObjectChanged, match=f"{happened} after it was listed"), place.store.open(stored) as file:
            file.read()


def test_an_object_replaced_while_it_is_read(place: Place, small_blocks: int) -> None:
    """A file that lost its name is still read as it was; elsewhere the rest is refused, never taken from the new."""
    for happened in ("replaced", "removed"):
        stored = put(place, "x", bytes(small_blocks * 20))
        with place.store.open(stored) as file:
            assert file.read(10) == bytes(10)
            if happened == "replaced":
                put(place, "x", b"1" * small_blocks * 20)
            else:
                place.store.move(stored.uri, join(place.folder, "elsewhere"))
            if scheme_of(place.folder).module == BACKENDS[""].module:
                assert file.read() == bytes(small_blocks * 20 - 10)
            else:
                with pytest.raises(ObjectChanged, match=f"^{stored.uri}: {happened} after it was listed$"):
                    file.read()


def test_an_empty_object_is_one(place: Place) -> None:
    stored = put(place, "empty", b"")
    assert stored.size == 0
    assert place.store.read(stored.uri) == b""
    with place.store.open(stored) as file:
        assert file.read() == b""
        assert file.read(10) == b""


@pytest.mark.parametrize("seed", range(3))
def test_any_pattern_of_reads_gives_the_bytes(place: Place, small_blocks: int, seed: int) -> None:
    draw = random.Random(seed)
    body = draw.randbytes(draw.choice([small_blocks * 12, small_blocks * 9 + 1, small_blocks - 1]))
    with place.store.open(put(place, "x", body)) as file:
        for _ in range(60):
            position = draw.choice([file.tell(), draw.randint(0, len(body) + 10), max(0, len(body) - 100)])
            assert file.seek(position) == position
            count = draw.choice([0, 1, 512, 5000, small_blocks, small_blocks * 5])
            assert file.read(count) == body[position : position + count]
            assert file.tell() == position + len(body[position : position + count])
        assert file.seek(-7, io.SEEK_END) == len(body) - 7
        assert file.read() == body[-7:]


def test_an_object_of_many_blocks(place: Place) -> None:
    body = random.Random(0).randbytes(3 * blocks.BLOCK_BYTES + 12345)
    stored = put(place, "big", body)
    with place.store.open(stored) as file:
        assert file.read() == body
    with place.store.open(stored) as file:
        assert b"".join(iter(lambda: file.read(1_000_003), b"")) == body


def a_table(rows: int = 4000) -> bytes:
    draw = random.Random(1)
    images = [draw.randbytes(100) for _ in range(rows)]
    stream = io.BytesIO()
    pq.write_table(pa.table({"row": range(rows), "image": images}), stream, row_group_size=rows // 8)
    return stream.getvalue()


def a_tar(members: int = 100) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for number in range(members):
            info = tarfile.TarInfo(f"{number:04}.bin")
            info.size = 3000 + number
            archive.addfile(info, io.BytesIO(bytes([number]) * info.size))
    return stream.getvalue()


def test_parquet_reads_through_it(place: Place, small_blocks: int) -> None:
    with place.store.open(put(place, "x.parquet", a_table())) as file, pq.ParquetFile(file, pre_buffer=False) as table:
        assert table.read_row_group(5, ["row"], use_threads=False).column("row").to_pylist() == list(range(2500, 3000))
        assert sum(batch.num_rows for batch in table.iter_batches(300, use_threads=False)) == 4000


@pytest.mark.parametrize("mode", ["r:", "r|"])
def test_tar_reads_through_it(place: Place, small_blocks: int, mode: str) -> None:
    with place.store.open(put(place, "x.tar", a_tar())) as file, tarfile.open(fileobj=file, mode=mode) as archive:  # type: ignore[call-overload]
        sizes = {info.name: len(archive.extractfile(info).read()) for info in archive}
    assert sizes == {f"{number:04}.bin": 3000 + number for number in range(100)}


# S3 and its network


@pytest.fixture
def proxy(seaweedfs: SeaweedFS) -> Iterator[FaultProxy]:
    with FaultProxy(seaweedfs.endpoint_url) as proxy:
        yield proxy


@pytest.fixture
def fault(request: pytest.FixtureRequest) -> Fault | None:
    return getattr(request, "param", None)


@pytest.fixture
def faulty(proxy: FaultProxy, bucket: str, fault: Fault | None, monkeypatch: pytest.MonkeyPatch) -> Place:
    """The bucket behind the proxy, with short pauses, and no patience for stalls where they are the subject."""
    monkeypatch.setattr(s3, "BACKOFF_SECONDS", 0.01)
    if fault == "trickle":
        monkeypatch.setattr(s3, "CONNECT_SECONDS", 0.2)
    patience = {"stall": 0.5, "trickle": 0.3}.get(fault or "", 30.0)
    settings = S3Settings(endpoint_url=proxy.endpoint_url, addressing_style="path", read_timeout=patience)
    return Place(Store(settings), bucket)


@pytest.mark.slow
def test_a_listing_takes_as_many_pages_as_it_needs(bucket_place: Place) -> None:
    store, bucket = bucket_place
    keys = [f"{number:04}" for number in range(1050)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.write(f"{bucket}/{key}", b""), keys))
    assert [stored.uri for stored in store.list(f"{bucket}/")] == [f"{bucket}/{key}" for key in keys]


@pytest.mark.parametrize("fault", ["503", "reset", "cut", "stall", "trickle"], indirect=True)
def test_a_fault_costs_time_not_bytes(faulty: Place, proxy: FaultProxy, small_blocks: int, fault: Fault) -> None:
    body = random.Random(2).randbytes(small_blocks * 7 + 5)
    stored = put(faulty, "x", body)
    proxy.faults.extend([fault] * 4)
    with faulty.store.open(stored) as file:
        assert file.read() == body
    proxy.faults.extend([fault] * 3)
    assert faulty.store.read(stored.uri) == body
    proxy.faults.append(fault)
    assert names(faulty) == ["x"]
    assert not proxy.faults


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "last"),
    [
        ("503", "SlowDown"),
        ("reset", "connection reset by peer"),
        ("cut", "2000 read"),
        ("stall", "no byte within store.read_timeout"),
        ("trickle", "less than 64 KiB within store.read_timeout"),
    ],
    indirect=["fault"],
)
def test_what_never_heals_is_given_up(faulty: Place, proxy: FaultProxy, fault: Fault, last: str) -> None:
    stored = put(faulty, "x", b"body" * 1000)
    proxy.always = fault
    started = time.monotonic()
    with faulty.store.open(stored) as file, pytest.raises(StoreError) as caught:
        file.read()
    assert str(caught.value).startswith(f"{stored.uri}: given up after 6 attempts, the last: ")
    assert last in str(caught.value)
    assert time.monotonic() - started < 15
    proxy.always = None
    with faulty.store.open(stored) as file:
        assert file.read() == b"body" * 1000


def test_a_failed_read_can_be_asked_for_again(faulty: Place, proxy: FaultProxy) -> None:
    with faulty.store.open(put(faulty, "x", b"body")) as file:
        proxy.always = "503"
        with pytest.raises(StoreError):
            file.read()
        proxy.always = None
        assert file.read() == b"body"


def test_a_lost_store_is_not_taken_for_a_damaged_table(faulty: Place, proxy: FaultProxy, small_blocks: int) -> None:
    stored = put(faulty, "x.parquet", a_table())
    with faulty.store.open(stored) as file, pq.ParquetFile(file, pre_buffer=False) as table:
        proxy.always = "503"
        with pytest.raises(StoreError, match=r"x\.parquet: given up"):
            table.read(use_threads=False)
    with faulty.store.open(stored) as file, pytest.raises(StoreError, match=r"x\.parquet: given up"):
        pq.ParquetFile(file)


@pytest.mark.parametrize("mode", ["r:", "r:*", "r|*"])
def test_a_lost_store_is_not_taken_for_a_damaged_tar(
    faulty: Place, proxy: FaultProxy, small_blocks: int, mode: str
) -> None:
    stored = put(faulty, "x.tar", a_tar())
    with faulty.store.open(stored) as file, tarfile.open(fileobj=file, mode=mode) as archive:  # type: ignore[call-overload]
        proxy.always = "503"
        with pytest.raises(StoreError, match=r"x\.tar: given up"):
            archive.getmembers()
    gives_up = pytest.raises(StoreError, match=r"x\.tar: given up")
    with faulty.store.open(stored) as file, gives_up, tarfile.open(fileobj=file, mode=mode):  # type: ignore[call-overload]
        pass


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["trickle"], indirect=True)
def test_no_answer_that_trickles_is_waited_for(faulty: Place, proxy: FaultProxy, small_parts: int) -> None:
    """Neither in its head nor in its body, whatever was asked."""
    stored = put(faulty, "x", b"body" * 1000)
    asked: list[tuple[str, Callable[[], object]]] = [
        ("GET", lambda: faulty.store.read(stored.uri)),
        ("GET", lambda: names(faulty)),
        ("GET", lambda: faulty.store.folders(f"{faulty.folder}/")),
        ("HEAD", lambda: faulty.store.stat(stored.uri)),
        ("HEAD", lambda: faulty.store.reach(stored.uri)),
        ("PUT", lambda: faulty.store.write(stored.uri, b"body" * 1000)),
        ("PUT", lambda: faulty.store.exchange(stored.uri, b"other", stored.version)),
        ("DELETE", lambda: faulty.store.move(stored.uri, f"{faulty.folder}/y")),
    ]
    for method, ask in asked:
        proxy.method = method
        proxy.faults.append("trickle")
        ask()
        assert not proxy.faults
    assert proxy.dealt["trickle"] == len(asked)


@pytest.mark.parametrize("fault", ["trickle"], indirect=True)
def test_what_comes_slowly_but_comes_is_read(faulty: Place, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """In more time than there is for each piece."""
    monkeypatch.setattr(s3, "READ_BYTES", 4)
    proxy.dripping, body = 0.03, b"body" * 15
    stored = put(faulty, "x", body)
    proxy.always = "trickle"
    assert faulty.store.read(stored.uri) == body
    with faulty.store.open(stored) as file:
        assert file.read() == body


@pytest.mark.parametrize("fault", ["cut", "stall"])
def test_an_error_whose_own_answer_breaks_off_is_asked_for_again(
    faulty: Place, proxy: FaultProxy, fault: Fault
) -> None:
    proxy.faults.append(fault)
    with pytest.raises(NotFound):
        faulty.store.read(f"{faulty.folder}/missing")
    assert proxy.dealt[fault] == 1


def test_a_closed_reader_leaves_no_thread(
    faulty: Place, proxy: FaultProxy, small_blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(threading.enumerate())
    with faulty.store.open(put(faulty, "x", bytes(small_blocks * 20))) as file:
        file.read(1)
        futures.wait(file.raw._blocks.values())  # those read ahead
        proxy.always = "503"
        monkeypatch.setattr(s3, "BACKOFF_SECONDS", 1e6)
        monkeypatch.setattr(s3, "MAX_BACKOFF_SECONDS", 1e6)
        file.seek(small_blocks)
        file.read(1)  # there already, but what is read ahead of it waits for its next attempt
    deadline = time.monotonic() + 3
    while any(thread.name.startswith("gradosr-read") for thread in set(threading.enumerate()) - before):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with pytest.raises(ValueError, match="closed"):
        file.read()


def test_memory_is_bounded(store: Store, bucket: str, small_blocks: int) -> None:
    with store.open(put(Place(store, bucket), "x", bytes(small_blocks * 40))) as file:
        raw = cast(io.BufferedReader, file).raw
        for position in [*range(0, small_blocks * 40, 1000), *random.Random(3).choices(range(small_blocks * 40), k=50)]:
            file.seek(position)
            file.read(1)
            assert len(raw._blocks) <= blocks.KEPT_BLOCKS  # type: ignore[attr-defined]


def test_writes_are_tried_again(faulty: Place, proxy: FaultProxy) -> None:
    proxy.method = "PUT"
    proxy.faults.extend(["503", "reset", "503"])
    put(faulty, "x", b"body")
    assert faulty.store.read(join(faulty.folder, "x")) == b"body"


@pytest.mark.parametrize("fault", ["503", "reset"])
def test_an_exchange_is_tried_again(faulty: Place, proxy: FaultProxy, fault: Fault) -> None:
    uri = join(faulty.folder, "x")
    proxy.method = "PUT"
    proxy.faults.extend([fault] * 3)
    first = faulty.store.exchange(uri, b"first", None)
    proxy.faults.extend([fault] * 3)
    assert faulty.store.exchange(uri, b"second", first)
    assert faulty.store.read(uri) == b"second"


def test_an_exchange_whose_answer_is_lost_looks_refused(faulty: Place, proxy: FaultProxy) -> None:
    uri = join(faulty.folder, "x")
    proxy.method = "PUT"
    proxy.faults.append("lost")
    assert faulty.store.exchange(uri, b"first", None) is None
    assert faulty.store.read(uri) == b"first"
    proxy.faults.append("lost")
    assert faulty.store.exchange(uri, b"second", faulty.store.stat(uri).version) is None
    assert faulty.store.read(uri) == b"second"


def test_an_exchange_of_what_is_missing_is_refused(faulty: Place, proxy: FaultProxy) -> None:
    proxy.method, proxy.always = "PUT", "missing"  # as AWS answers to If-Match; SeaweedFS says 412
    assert faulty.store.exchange(join(faulty.folder, "x"), b"never", "0" * 32) is None


def test_an_exchange_in_a_missing_bucket(bucket_place: Place) -> None:
    store, bucket = bucket_place
    with pytest.raises(NotFound, match=f"^{bucket}-2: no such bucket$"):
        store.exchange(f"{bucket}-2/x", b"never", None)


@pytest.mark.parametrize("version", [None, "0" * 32])
def test_a_store_that_refuses_conditions_says_so(faulty: Place, proxy: FaultProxy, version: str | None) -> None:
    proxy.conditions = "refused"
    with pytest.raises(NoConditionalWrites, match=f"^{faulty.folder}/x: "):
        faulty.store.exchange(join(faulty.folder, "x"), b"body", version)
    assert names(faulty) == []


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(s3, "PART_BYTES", 5 * 2**20)  # the least that S3 allows
    return s3.PART_BYTES


def test_a_large_object_goes_up_in_parts(faulty: Place, proxy: FaultProxy, small_parts: int) -> None:
    body, uri = random.Random(4).randbytes(small_parts * 2 + 5), join(faulty.folder, "x")
    assert faulty.store.write(uri, body, if_absent=True)
    assert not faulty.store.write(uri, io.BytesIO(bytes(len(body))), if_absent=True)
    assert proxy.seen[-1].startswith("DELETE ")
    with faulty.store.open(faulty.store.stat(uri)) as file:
        assert file.read() == body


def test_an_upload_that_fails_is_taken_back(faulty: Place, proxy: FaultProxy, small_parts: int) -> None:
    proxy.method, proxy.always = "PUT", "503"
    with pytest.raises(StoreError, match="given up after 6 attempts"):
        faulty.store.write(join(faulty.folder, "x"), bytes(small_parts + 1))
    assert proxy.seen[-1].startswith("DELETE ")
    assert "uploadId=" in proxy.seen[-1]
    assert names(faulty) == []


def test_without_conditional_writes_the_last_counts(faulty: Place, proxy: FaultProxy) -> None:
    proxy.conditions = "refused"
    uri = join(faulty.folder, "x")
    assert faulty.store.write(uri, b"first", if_absent=True)
    asked = len(proxy.seen)
    assert faulty.store.write(uri, b"second", if_absent=True)
    assert len(proxy.seen) == asked + 1  # remembered, not asked again
    assert faulty.store.read(uri) == b"second"


# What users get wrong, in one line each


def message_of(store: Store, uri: str) -> str:
    with pytest.raises(StoreError) as caught:
        store.read(uri)
    return f"{type(caught.value).__name__}: {caught.value}"


KEYS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE (the standard AWS chain)"
PUBLIC = "; a public bucket is read without them with `anonymous: true` in `store` or `stores`"


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("AWS_ACCESS_KEY_ID", f"the store does not know this access key: {KEYS}"),
        ("AWS_SECRET_ACCESS_KEY", f"the secret key does not fit the access key: {KEYS}"),
    ],
)
def test_wrong_credentials(
    store: Store, bucket: str, monkeypatch: pytest.MonkeyPatch, variable: str, message: str
) -> None:
    monkeypatch.setenv(variable, "wrong")
    assert message_of(store, f"{bucket}/x") == f"AccessDenied: {bucket}/x: {message}"
    with pytest.raises(AccessDenied, match="HeadObject is forbidden"):
        store.stat(f"{bucket}/x")


def test_expired_credentials(faulty: Place, proxy: FaultProxy) -> None:
    stored = put(faulty, "x", b"body")
    proxy.always = "expired"
    assert message_of(faulty.store, stored.uri).endswith("x: the credentials have expired: renew them")
    proxy.method = "HEAD"  # whose answer has no body that could say so
    with pytest.raises(AccessDenied, match=r"HeadObject was refused \(400\): the credentials may have expired"):
        faulty.store.stat(stored.uri)


def test_no_credentials(store: Store, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    expected = f"AccessDenied: {bucket}/x: no AWS credentials (NoCredentialsError): {KEYS}{PUBLIC}"
    assert message_of(store, f"{bucket}/x") == expected


@pytest.fixture
def public(bucket: str, s3_settings: S3Settings) -> str:
    """URI of a bucket that everyone may read and list, and nobody without keys may write."""
    server = boto3.client("s3", endpoint_url=s3_settings.endpoint_url, region_name="us-east-1")
    name = bucket.removeprefix("s3://")
    places = [f"arn:aws:s3:::{name}", f"arn:aws:s3:::{name}/*"]
    rule = {"Effect": "Allow", "Principal": "*", "Action": ["s3:GetObject", "s3:ListBucket"], "Resource": places}
    server.put_bucket_policy(Bucket=name, Policy=json.dumps({"Version": "2012-10-17", "Statement": [rule]}))
    return bucket


@pytest.mark.slow
def test_a_public_bucket_is_read_without_keys(
    store: Store, public: str, s3_settings: S3Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Beside a store with keys; where keys are set that the public one does not know, they are not sent to it."""
    store.write(f"{public}/a b+c.tar", b"body")
    nameless = s3_settings.model_copy(update={"anonymous": True})
    for scheme in ("s3", "gs"):
        folder = public.replace("s3", scheme, 1)
        both = Store(s3_settings, {folder: nameless})
        for keys in ("right", "wrong", "none"):
            with monkeypatch.context() as environment:
                if keys == "none":
                    environment.delenv("AWS_ACCESS_KEY_ID")
                    environment.delenv("AWS_SECRET_ACCESS_KEY")
                    environment.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
                    environment.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
                elif keys == "wrong":
                    environment.setenv("AWS_ACCESS_KEY_ID", "wrong")
                public_store = Store(stores={folder: nameless})
                (found,) = public_store.list(f"{folder}/")
                assert (found.uri, public_store.stat(found.uri).size) == (f"{folder}/a b+c.tar", 4)
                assert public_store.read(found.uri) == public_store.open(found).read() == b"body"
        with pytest.raises(AccessDenied) as caught:
            both.write(f"{folder}/x", b"")
        assert str(caught.value) == (
            f"{folder}/x: PutObject is forbidden without keys, and this store is `anonymous`: keys are not sent to it; "
            "set `anonymous` for the prefixes of public buckets only, under `stores`"
        )


def test_a_bucket_that_is_not_public_refuses_requests_without_keys(bucket: str, s3_settings: S3Settings) -> None:
    store = Store(s3_settings.model_copy(update={"anonymous": True}))
    for call in (store.read, store.stat, lambda uri: list(store.list(uri))):
        with pytest.raises(AccessDenied, match="is forbidden without keys, and this store is `anonymous`"):
            call(f"{bucket}/x")


def test_an_unknown_profile(store: Store, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert message_of(store, f"{bucket}/x").endswith(f": no AWS credentials (ProfileNotFound): {KEYS}{PUBLIC}")


def test_a_missing_bucket(bucket_place: Place) -> None:
    store, bucket = bucket_place
    expected = f"{bucket}-2: no such bucket"
    assert message_of(store, f"{bucket}-2/x/y") == f"NotFound: {expected}"
    for call in (
        lambda: list(store.list(f"{bucket}-2/x/")),
        lambda: store.write(f"{bucket}-2/x", b""),
        lambda: store.write(f"{bucket}-2/x", b"", if_absent=True),
    ):
        with pytest.raises(NotFound) as caught:
            call()
        assert str(caught.value) == expected


def test_a_server_that_cannot_be_reached(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "BACKOFF_SECONDS", 0.01)
    store = Store(S3Settings(endpoint_url="http://127.0.0.1:9", addressing_style="path"))
    expected = (
        f"StoreError: {bucket}/x: cannot reach http://127.0.0.1:9 in 6 attempts (connection refused): "
        "check store.endpoint_url and the network"
    )
    assert message_of(store, f"{bucket}/x") == expected


def test_before_work_a_server_that_cannot_be_reached_is_given_up_soon_and_once(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "BACKOFF_SECONDS", 0.01)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        store = Store(S3Settings(endpoint_url=url, addressing_style="path"))
        expected = f"^{bucket}: cannot reach {url} in 3 attempts \\(connection refused\\): check store.endpoint_url"
        with pytest.raises(StoreError, match=expected):
            store.reach(f"{bucket}/x")
        server.listen()  # from here on it would be asked, and never answer
        with pytest.raises(StoreError, match=expected):
            store.reach(f"{bucket}-2/x")


def test_any_answer_shows_that_a_server_can_be_reached(faulty: Place, proxy: FaultProxy) -> None:
    proxy.method = "HEAD"
    proxy.faults.extend(["503", "reset", "denied", "expired"])
    for _ in range(4):
        faulty.store.reach(join(faulty.folder, "x"))
    faulty.store.reach(f"{faulty.folder}-2/x")
    assert not proxy.faults


@pytest.mark.parametrize("uri", ["S3://bucket/x", "http://host/x", "file://host/x", "hf://x"])
def test_an_unknown_kind_of_uri(uri: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Store().read(uri)
    forms = "a local path, file:///PATH, s3://BUCKET/KEY, gs://BUCKET/KEY or memory://NAME/KEY"
    assert str(caught.value) == f"{uri}: not {forms}"


@pytest.mark.parametrize(
    ("settings", "named"),
    [(S3Settings(endpoint_url="localhost:8333"), "localhost:8333"), (S3Settings(region="eu west"), "eu west")],
)
def test_settings_that_cannot_work(settings: S3Settings, named: str) -> None:
    with pytest.raises(ConfigError, match=f"^store: .*{named}"):
        Store(settings).read("s3://bucket/x")


@pytest.mark.parametrize("rest", ["bucket", "bucket/", "", "/x"])
@pytest.mark.parametrize("scheme", ["s3", "gs", "memory"])
def test_a_uri_that_names_no_object(store: Store, scheme: str, rest: str) -> None:
    uri = f"{scheme}://{rest}"
    assert message_of(store, uri) == f"NotFound: {uri}: names no object: {BACKENDS[scheme].form}"


def test_the_longest_prefix_decides_where_a_uri_is(s3_settings: S3Settings, bucket: str) -> None:
    nowhere = S3Settings(endpoint_url="no url")
    stores = {bucket: nowhere, f"{bucket}/here/": s3_settings, f"{bucket}-2/": nowhere}
    store = Store(nowhere, stores)
    store.write(f"{bucket}/here/x", b"body")
    assert [stored.uri for stored in store.list(f"{bucket}/here")] == [f"{bucket}/here/x"]
    for uri in (f"{bucket}/hereafter/x", f"{bucket}/x", "s3://other/x"):
        with pytest.raises(ConfigError):
            store.read(uri)
    with pytest.raises(ConfigError):
        store.move(f"{bucket}/here/x", f"{bucket}/x")
    with pytest.raises(StoreError, match="another store"):
        store.move(f"{bucket}/here/x", "/tmp/x")


def test_join() -> None:
    assert join("s3://b/pre", "x/y") == join("s3://b/pre/", "x/y") == "s3://b/pre/x/y"
    assert join("s3://b", "") == join("s3://b/", "") == "s3://b/"
    assert join("", "x") == "x"


# Folders and disks


class Interrupted(io.BytesIO):
    """A body whose second block never comes."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(bytes(2**21))
        self.error = error

    def read(self, size: int | None = -1) -> bytes:
        if self.tell():
            raise self.error
        return super().read(size)


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        Store().write(f"{tmp_path}/x", Interrupted(KeyboardInterrupt()))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=f"^{tmp_path}/x: no space left on its disk; make room"):
        Store().write(f"{tmp_path}/x", Interrupted(OSError(errno.ENOSPC, "No space left on device")))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_written_over_while_it_is_read(tmp_path: Path) -> None:
    stored = put(Place(Store(), str(tmp_path)), "x", bytes(2**22))
    with Store().open(stored) as file:
        assert file.read(10) == bytes(10)
        with Path(stored.uri).open("r+b") as same:
            same.seek(2**21)
            same.write(b"1")
        with pytest.raises(ObjectChanged, match=f"^{stored.uri}: replaced after it was listed$"):
            file.read()


def test_a_folder_that_cannot_be_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "LOCK_SECONDS", 0.05)
    store, uri = Store(), f"{tmp_path}/x"
    version = store.exchange(uri, b"first", None)
    with (tmp_path / ".gradosr-lock").open() as another:
        fcntl.flock(another, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match=r"locked by another process for 0\.05 s"):
            store.exchange(uri, b"never", version)

    def without_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", without_locks)
    with pytest.raises(NoConditionalWrites, match=f"^{tmp_path}: its file system does not lock files$"):
        store.exchange(uri, b"never", version)
    assert [stored.uri for stored in store.list(f"{tmp_path}/")] == [uri]
    assert store.read(uri) == b"first"


def test_what_a_killed_writer_leaves_is_no_object(tmp_path: Path) -> None:
    program = (
        "import io, os, sys; from gradosr.store import Store\n"
        "class Dying(io.BytesIO):\n"
        "    def read(self, size=-1): os._exit(9)\n"
        "Store().write(sys.argv[1], Dying(b'body'))"
    )
    assert subprocess.run([sys.executable, "-c", program, f"{tmp_path}/x"], check=False).returncode == 9
    assert len(list(tmp_path.iterdir())) == 1
    assert list(Store().list(f"{tmp_path}/")) == []


def test_links_are_followed_and_never_in_circles(tmp_path: Path) -> None:
    store, data = Store(), tmp_path / "data"
    store.write(f"{data}/a/x", b"1")
    (data / "a" / "up").symlink_to(data)
    (data / "a" / "self").symlink_to(data / "a" / "self")
    (data / "b").symlink_to(data / "a" / "x")
    (data / "dangling").symlink_to(data / "nothing")
    assert [stored.uri for stored in store.list(f"{data}/")] == [f"{data}/a/x", f"{data}/b"]


def test_local_uris_stay_as_they_are_spelt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store()
    store.write("data/x", b"1")
    for folder in ("data/", "./data/", f"{tmp_path}/data/", f"file://{tmp_path}/data/"):
        (stored,) = store.list(folder)
        assert stored.uri == f"{folder}x"
        assert store.read(stored.uri) == b"1"
    assert [stored.uri for stored in store.list("")] == ["data/x"]


@pytest.mark.parametrize("folder", ["missing/", "missing/x", "file/"])
def test_a_missing_folder(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotFound):
        list(Store().list(f"{tmp_path}/{folder}"))


def test_a_folder_is_no_object(tmp_path: Path) -> None:
    for call in (Store().stat, Store().read, lambda uri: Store().write(uri, b"")):
        with pytest.raises(StoreError, match=f"^{tmp_path}: "):
            call(str(tmp_path))


def test_a_pipe_without_a_writer_is_no_object(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NotFound, match=r"pipe: not a file"):
        Store().read(f"{tmp_path}/pipe")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=f"^{tmp_path}/file/x: "):
        Store().write(f"{tmp_path}/file/x", b"")
    with pytest.raises(AccessDenied, match=r"^/sys/gradosr-test/x: (permission denied|operation not|read-only file)"):
        Store().write("/sys/gradosr-test/x", b"")
