import bz2
import gzip
import io
import json
import lzma
import random
import tarfile
from dataclasses import replace

import bombs
import numpy as np
import pyarrow as pa
import pytest
from hostile import jpeg, noise, parquet_file, png, tar

from gradosr.archive import readers
from gradosr.archive.groups import Record, list_groups
from gradosr.archive.image import EncodedImage, Fault, resolve_names
from gradosr.archive.readers import READERS, compressed
from gradosr.archive.shards import list_shards
from gradosr.config import ImagesInput, ParquetInput, TarInput
from gradosr.errors import InputError, NotFound, ObjectChanged, ShardUnreadable, StoreError
from gradosr.store import Store

CAT, DOG = png(8, 8), jpeg(9, 9)


@pytest.fixture
def read(tmp_path):
    """Writes one shard's bytes into a folder and reads them back through the store."""

    def read(data, name="s.tar", label_names=None, store=None, **settings):
        (tmp_path / name).write_bytes(data)
        kind = ParquetInput if name.endswith("parquet") else TarInput
        source = kind(uri=str(tmp_path / name), **settings)
        store = store or Store()
        (shard,) = list_shards(source, store)
        return list(READERS[source.kind].read(shard, store, source, label_names))

    return read


def test_images_are_counted_without_their_content(tmp_path, monkeypatch):
    image = random.Random(0).randbytes(9000)  # which does not compress
    members = [(f"{number}.{end}", data) for number in range(400) for end, data in (("jpg", image), ("cls", b"1"))]
    unlike = [(f"{number}.jpg", random.Random(number).randbytes(9000)) for number in range(400)]
    monkeypatch.setattr(readers.tar, "_HEAD", 2_000_000)
    for name, data, count in (
        ("whole.tar", tar(members[:20]), 10),
        ("large.tar", tar(members), pytest.approx(400, rel=0.02)),
        ("large.tar.gz", gzip.compress(tar(unlike), 1), pytest.approx(400, rel=0.2)),
        ("rows.parquet", parquet_file({"image": [CAT] * 7}), 7),
    ):
        (tmp_path / name).write_bytes(data)
        source = (ParquetInput if name.endswith("parquet") else TarInput)(uri=str(tmp_path / name))
        (shard,) = list_shards(source, Store())
        assert READERS[source.kind].images_in(shard, Store(), source) == count


class FailingStore(Store):
    """The local store over a network that breaks at the read with this number."""

    def __init__(self, reads):
        super().__init__()
        self.reads = reads

    def open(self, stored):
        with super().open(stored) as file:
            return FailingFile(file.read(), self)


class FailingFile(io.BytesIO):
    def __init__(self, data, store):
        super().__init__(data)
        self.store = store

    def read(self, size=-1):
        self.store.reads -= 1
        if self.store.reads < 0:
            raise StoreError("connection lost")
        return super().read(size)

    def readinto(self, buffer):  # what gzip and BufferedReader call
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def test_a_tar_gives_a_row_per_image_with_its_samples_label(read):
    data = tar(
        [
            ("a.jpg", DOG),
            ("a.cls", b"dog\n"),
            ("./x/b.cls", b"cat"),
            ("./x/b.left.PNG", CAT),
            ("./x/b.json", b"{}"),
            ("./x/b.right.png", CAT),
            ("x/", b""),
            ("b.png", CAT),  # another folder: another sample
            ("c.cls", b""),
            ("c.webp", b""),
            ("notes.txt", b"text"),
        ]
    )
    assert read(data) == [
        EncodedImage("s.tar#a.jpg", DOG, "dog"),
        EncodedImage("s.tar#x/b.left.PNG", CAT, "cat"),
        EncodedImage("s.tar#x/b.right.png", CAT, "cat"),
        EncodedImage("s.tar#b.png", CAT),
        EncodedImage("s.tar#c.webp", b"", fault=Fault("empty", "no bytes")),
    ]


def test_integer_labels_take_their_names_where_there_are_any(read):
    data = tar([("a.png", CAT), ("a.cls", b"1"), ("b.png", CAT), ("b.cls", b"7"), ("c.png", CAT), ("c.cls", b"-1")])
    assert [image.label for image in read(data, label_names=("cat", "dog"))] == ["dog", "7", "-1"]
    assert [image.label for image in read(data)] == ["1", "7", "-1"]


def test_a_label_belongs_to_its_own_sample_only(read):
    data = tar([("a.cls", b"1"), ("b.png", CAT), ("a.png", CAT)])
    assert [image.label for image in read(data)] == [None, None]


def test_names_that_come_again_get_a_number(read):
    data = tar([("a.png", CAT), ("b.png", CAT), ("a.png", DOG), ("./a.png", CAT), ("b.png", DOG)])
    assert [image.key for image in read(data)] == [
        "s.tar#a.png",
        "s.tar#b.png",
        "s.tar#a.png#2",
        "s.tar#a.png#3",
        "s.tar#b.png#2",
    ]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_hostile_names_are_only_text(read, form):
    names = ["../../etc/a.png", "/b.png", "c\n\x1b[31m.png", "<script>.png", "é" * 200 + ".png", "d\udcff.png", ".png"]
    keys = [image.key for image in read(tar([(name, CAT) for name in names], form))]
    assert keys == [f"s.tar#{name}".replace("\udcff", "\\xff") for name in names]
    for key in keys:
        key.encode()


def test_folders_and_devices_are_no_images(read):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:") as archive:
        for kind in (tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            member = tarfile.TarInfo(f"{kind.decode()}.png")
            member.type = kind
            archive.addfile(member)
    assert read(buffer.getvalue()) == []


def test_a_tar_without_members_has_no_rows(read):
    assert read(tar([])) == []
    assert read(tar([("readme.txt", b"text")])) == []
    assert read(tar([], mode="w:gz"), "s.tgz") == []


def zst(data):
    return pa.Codec("zstd").compress(data, asbytes=True)


COMPRESS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zst}


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize(
    "name", ["s.tar.gz", "s.TGZ", "s.tar.bz2", "s.tbz2", "s.tar.xz", "s.TXZ", "s.tar.zst", "s.tzst"]
)
def test_a_compressed_tar_reads_the_same(read, name, parts):
    """Parallel compressors write several streams, one after the other; xz may put zeros between them."""
    members = [("a.png", CAT), ("a.cls", b"cat"), ("b.jpg", DOG), ("c.png", noise(300, 300).tobytes())]
    data, kind = tar(members), name.lower().removeprefix("s.").removeprefix("tar.").removeprefix("t")
    size = -(-len(data) // parts)
    pieces = [COMPRESS[kind](data[start : start + size]) for start in range(0, len(data), size)]
    assert read((bytes(8) if kind == "xz" else b"").join(pieces), name) == [
        replace(image, key=image.key.replace("s.tar", name, 1)) for image in read(data)
    ]


def test_a_compressed_tar_that_asks_for_much_memory_is_unreadable(read, monkeypatch):
    monkeypatch.setattr(compressed, "MAX_DICTIONARY", 2**20)
    with pytest.raises(ShardUnreadable, match="Memory usage limit exceeded"):
        read(lzma.compress(tar([("a.png", CAT)])), "s.tar.xz")
    with pytest.raises(ShardUnreadable, match="too much memory"):
        read(b"\x28\xb5\x2f\xfd\x00\xa8\x09\x00\x00a" + bytes(99), "s.tar.zst")  # a window of 2 GiB


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("s.tar", b"", "empty file"),
        ("s.tgz", b"", "empty file"),
        ("s.tar", b"<html>" * 200, "invalid header"),
        ("s.tar", tar([("a.png", CAT)])[:511], "truncated header"),
        ("s.tgz", tar([("a.png", CAT)]), "Not a gzipped file"),
        ("s.tgz", gzip.compress(b"text"), "truncated header"),
        ("s.tgz", tar([("a.png", CAT)], mode="w:gz")[:20], "ended before"),
        ("s.tar.bz2", tar([("a.png", CAT)]), "Invalid data stream"),
        ("s.tar.bz2", b"", "empty file"),
        ("s.tar.xz", tar([("a.png", CAT)]), "Input format not supported"),
        ("s.tar.xz", lzma.compress(tar([("a.png", CAT)]))[:40], "ended before"),
        ("s.tar.zst", tar([("a.png", CAT)]), "Unknown frame"),
        ("s.tar.zst", zst(b"text"), "truncated header"),
    ],
    ids=range(13),  # not the bytes of gzip, which hold the time
)
def test_what_is_no_tar_is_unreadable(read, name, data, reason):
    with pytest.raises(ShardUnreadable, match=rf"{name}: not a tar archive: .*{reason}"):
        read(data, name)


MEMBERS = [
    ("a.png", png(20, 20)),
    ("a.cls", b"cat"),
    ("long/" * 40 + "b.cls", b"dog"),
    ("long/" * 40 + "b.jpg", noise(20, 20).tobytes()),  # 1,200 bytes: no multiple of 512
    ("notes.txt", bytes(700)),
    ("c.png", noise(32, 16).tobytes()),  # 1,536 bytes: three blocks, no padding
    ("d.png", b""),
    ("e.cls", b"\xc3\xa9"),
    ("e.gif", b"GIF"),
]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_cut_anywhere_gives_its_whole_images_and_one_truncated_row(read, form):
    """Cut behind the first block of zeros, nothing but padding is missing: that archive is whole."""
    data = tar(MEMBERS, form)
    whole = read(data)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        images = [member for member in archive.getmembers() if member.name.endswith(("png", "jpg", "gif", "cls"))]
        archive_end = archive.offset
    cuts = {*range(512, len(data), 512), *(random.Random(2).randrange(512, archive_end + 600) for _ in range(100))}
    for length in sorted(cuts):
        rows = read(data[:length])
        if length >= archive_end + 512:
            assert rows == whole
            continue
        ended = [member for member in images if member.offset_data + member.size <= length]
        count = sum(not member.name.endswith("cls") for member in ended)
        assert [(row.key, row.data, row.fault) for row in rows[:-1]] == [
            (row.key, row.data, row.fault) for row in whole[:count]
        ]
        broken = [member for member in images if member.offset_data <= length < member.offset_data + member.size]
        assert rows[-1].key == f"s.tar#{broken[0].name if broken else 'truncated'}"
        assert (rows[-1].data, rows[-1].fault.status) == (b"", "truncated")


@pytest.mark.slow
@pytest.mark.parametrize("kind", COMPRESS)
def test_a_compressed_tar_cut_anywhere_gives_a_beginning_and_one_truncated_row(read, kind):
    """Bzip2, xz and Zstandard give nothing of a block before all of it is there: here each member is a stream."""
    pieces = [tar([(name, noise(20, 20, seed).tobytes())]) for seed, (name, _) in enumerate(MEMBERS)]
    unended = [piece[: len(piece.rstrip(b"\0")) + 511 & -512] for piece in pieces]
    streams = [COMPRESS[kind](piece) for piece in [*unended, bytes(1024)]]
    data = b"".join(streams)
    whole = read(data, f"s.tar.{kind}")
    ends = set()
    for length in range(len(streams[0]), len(data), 41):
        rows = read(data[:length], f"s.tar.{kind}")
        if rows != whole:
            keys = [row.key for row in whole[: len(rows) - 1]]
            assert [row.key for row in rows[:-1]] == keys
            assert [row.fault and row.fault.status for row in rows] == [None] * len(keys) + ["truncated"]
        ends.add(len(rows))
    assert ends >= set(range(2, len(whole) + 1))


def test_garbage_between_members_is_a_cut(read):
    data = bytearray(tar([("a.png", bytes(512)), ("b.png", CAT), ("c.png", CAT)], tarfile.USTAR_FORMAT))
    data[1024:1536] = b"?" * 512
    good, broken = read(bytes(data))
    assert (good.key, good.fault) == ("s.tar#a.png", None)
    assert broken == EncodedImage(
        "s.tar#truncated", b"", fault=Fault("truncated", "archive cut or damaged: no end mark: invalid header")
    )


def test_a_header_that_leads_backwards_ends_the_reading(read):
    """Old tarfile follows a negative size, plain or from a pax record, round and round."""
    member = tarfile.TarInfo("b.png")
    member.pax_headers = {"size": "-1536"}  # three blocks: a pax header, its records, the header itself
    evil = member.tobuf(tarfile.PAX_FORMAT)
    rows = read(tar([("a.png", CAT)])[: 512 + 512 * -(-len(CAT) // 512)] + evil + bytes(1024))
    assert [(row.key, row.fault and row.fault.status) for row in rows] == [
        ("s.tar#a.png", None),
        ("s.tar#truncated", "truncated"),
    ]
    header = bytearray(tarfile.TarInfo("c.png").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 11 + b"\x00"  # base 256: -256
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:]) + 8 * 32)
    with pytest.raises(ShardUnreadable, match="header of -256 bytes"):
        read(bytes(header))


def test_a_member_beyond_the_bound_is_not_read(read, monkeypatch):
    monkeypatch.setattr(readers.tar, "MAX_ENCODED", 1000)
    rows = read(tar([("a.png", bytes(1001)), ("b.png", bytes(1000)), ("a.cls", bytes(1001))]))
    assert [(row.key, len(row.data), row.fault and row.fault.status) for row in rows] == [
        ("s.tar#a.png", 0, "too_large"),
        ("s.tar#b.png", 1000, None),
    ]


def test_a_sparse_member_is_not_read(read):
    member = tarfile.TarInfo("a.png")
    member.pax_headers = {"GNU.sparse.map": "0,9,3,1", "GNU.sparse.size": "99"}  # a map that covers not all of it
    rows = read(member.tobuf(tarfile.PAX_FORMAT) + tar([("b.png", CAT)]))
    assert [(row.key, row.fault) for row in rows] == [
        ("s.tar#a.png", Fault("unsupported", "a sparse tar member")),
        ("s.tar#b.png", None),
    ]


def test_a_sparse_label_is_no_image(read):
    member = tarfile.TarInfo("a.cls")
    member.pax_headers = {"GNU.sparse.map": "0,9", "GNU.sparse.size": "99"}
    (row,) = read(member.tobuf(tarfile.PAX_FORMAT) + tar([("a.png", CAT)]))
    assert (row.key, row.label) == ("s.tar#a.png", None)


def test_a_name_longer_than_paths_can_be_is_kept_in_part(read):
    rows = read(tar([("n" * 5000 + ".png", CAT), ("n" * 5000 + ".cls", b"cat"), ("b.png", CAT)]))
    assert [(row.key, row.fault) for row in rows] == [
        ("s.tar#" + "n" * 4096, Fault("unsupported", "a name of 5004 letters is longer than 4096")),
        ("s.tar#b.png", None),
    ]


@pytest.mark.parametrize("bomb", [bombs.sparse_bomb, bombs.sparse_map_bomb])
def test_a_map_of_holes_without_end_is_a_cut(read, bomb):
    (row,) = read(bomb(1), "s.tgz")
    assert row.fault == Fault("truncated", "archive cut or damaged: headers of more than 131072 bytes")


def test_images_wait_for_their_label_only_up_to_a_bound(read, monkeypatch):
    monkeypatch.setattr(readers.tar, "_MAX_SAMPLE", 1000)
    rows = read(tar([("a.1.png", bytes(600)), ("a.2.png", bytes(600)), ("a.3.png", bytes(600)), ("a.cls", b"cat")]))
    assert [row.label for row in rows] == [None, None, "cat"]


@pytest.mark.parametrize("name", ["s.tar", "s.tar.gz", "s.tar.bz2", "s.tar.xz", "s.tar.zst", "s.parquet"])
def test_a_store_that_fails_at_any_read_is_never_taken_for_bad_content(read, name):
    if name == "s.parquet":
        data = parquet_file({"image": [noise(20, 20, seed).tobytes() for seed in range(6)], "label": list(range(6))})
    else:
        data = tar([(f"{seed}.png", noise(100, 100, seed).tobytes()) for seed in range(12)])
        data = COMPRESS.get(name.removeprefix("s.tar."), bytes)(data)
    settings = {"label_column": "label"} if name == "s.parquet" else {}
    reads = FailingStore(10**6)
    whole = read(data, name, store=reads, **settings)
    needed = 10**6 - reads.reads
    assert needed > 5
    for number in range(needed):
        with pytest.raises(StoreError, match="connection lost") as caught:
            read(data, name, store=FailingStore(number), **settings)
        assert caught.type is StoreError
    assert read(data, name, store=FailingStore(needed), **settings) == whole


HUGGING_FACE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def test_a_parquet_file_gives_a_row_per_row(read):
    image = pa.array(
        [{"bytes": CAT, "path": "x/cat.png"}, None, {"bytes": None, "path": "lost.png"}, {"bytes": b"", "path": None}],
        HUGGING_FACE,
    )
    data = parquet_file({"other": [1, 2, 3, 4], "image": image, "label": [1, 0, 9, None]}, row_group_size=3)
    empty = Fault("empty", "no bytes")
    rows = read(data, "s.parquet", ("cat", "dog"), label_column="label")
    assert rows == [
        EncodedImage("s.parquet#0", CAT, "dog", "x/cat.png"),
        EncodedImage("s.parquet#1", b"", "cat", None, empty),
        EncodedImage("s.parquet#2", b"", "9", "lost.png", readers.parquet._PATH_ALONE),
        EncodedImage("s.parquet#3", b"", None, None, empty),
    ]
    assert [row.label for row in read(data, "s.parquet")] == [None] * 4
    assert [row.label for row in read(data, "s.parquet", label_column="label")] == ["1", "0", "9", None]


@pytest.mark.parametrize(
    "kind",
    [
        *(pa.binary(), pa.large_binary(), pa.binary_view()),
        *(pa.dictionary(pa.int32(), pa.binary()), pa.dictionary(pa.int8(), pa.large_binary())),
    ],
)
@pytest.mark.parametrize(
    "labels",
    [
        pa.array(["cat", None, "dog"], pa.string()),
        pa.array(["cat", None, "dog"], pa.large_string()),
        pa.array(["cat", None, "dog"]).cast(pa.string_view()),
        pa.array(["cat", None, "dog"]).dictionary_encode(),
    ],
)
@pytest.mark.parametrize("path", [None, pa.string(), pa.dictionary(pa.int32(), pa.string())])
def test_kinds_of_parquet_columns(read, kind, labels, path):
    images = pa.array([CAT, None, DOG], pa.binary())
    images = images.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else images.cast(kind)
    if path is not None:
        paths = pa.array(["a.png", None, "b.jpg"])
        paths = paths.dictionary_encode() if pa.types.is_dictionary(path) else paths
        images = pa.StructArray.from_arrays([images, paths], ["bytes", "path"])
    try:
        data = parquet_file({"img": images, "y": labels}, row_group_size=3)  # pyarrow cuts no views within structs
    except pa.ArrowNotImplementedError as error:
        if "_view" not in str(error):
            raise
        pytest.skip(f"this pyarrow writes no such column: {error}")  # 18, the lowest, has no views in Parquet
    rows = read(data, "s.parquet", image_column="img", label_column="y")
    assert [(row.data, row.label, row.source) for row in rows] == [
        (CAT, "cat", path and "a.png"),
        (b"", None, None),
        (DOG, "dog", path and "b.jpg"),
    ]


def test_images_of_one_length_may_be_a_column_of_that_length(read):
    images = pa.array([CAT, None, CAT[::-1]], pa.binary(len(CAT)))
    assert [row.data for row in read(parquet_file({"image": images}), "s.parquet")] == [CAT, b"", CAT[::-1]]


def test_a_row_with_a_path_alone_says_so_and_what_to_do(read):
    (row,) = read(
        parquet_file({"image": pa.array([{"bytes": None, "path": "/data/a.png"}], HUGGING_FACE)}), "s.parquet"
    )
    assert row.source == "/data/a.png"
    assert row.fault.status == "empty"
    assert row.fault.error.startswith("no bytes, only a path, which is not followed: save the file with its images")
    assert len(row.fault.error) <= 200


def test_rows_are_counted_through_batches_and_row_groups(read):
    data = parquet_file({"image": [b"%d" % row for row in range(300)]}, row_group_size=130)
    assert [(row.key, row.data) for row in read(data, "s.parquet")] == [
        (f"s.parquet#{row}", b"%d" % row) for row in range(300)
    ]


def test_text_that_is_not_utf8_does_not_stop_a_parquet_file(read):
    paths = pa.Array.from_buffers(pa.string(), 1, pa.array([b"a\xff.png"]).buffers())
    image = pa.StructArray.from_arrays([pa.array([CAT]), paths], ["bytes", "path"])
    (row,) = read(parquet_file({"image": image, "label": paths}), "s.parquet", label_column="label")
    assert (row.source, row.label) == ("a\\xff.png", "a\\xff.png")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"img": [CAT], "y": [1]}, "no column 'image' (columns: img, y); set input.image_column"),
        ({"image": [CAT], "y": [1]}, "no column 'label' (columns: image, y); set input.label_column"),
        (
            {"image": ["a.png"], "label": [1]},
            "column 'image' is string, not encoded images (binary, or struct<bytes, path>); "
            "paths and URLs are not followed",
        ),
        ({"image": [CAT], "label": [1.5]}, "column 'label' is double, not labels (strings or integers)"),
    ],
)
def test_columns_that_do_not_fit_are_named_before_the_work_and_in_it(tmp_path, read, columns, message):
    with pytest.raises(ShardUnreadable) as caught:
        read(parquet_file(columns), "s.parquet", label_column="label")
    uri = f"{tmp_path}/s.parquet"
    assert str(caught.value) == f"{uri}: {message}"
    source = ParquetInput(uri=uri, label_column="label")
    (shard,) = list_shards(source, Store())
    with pytest.raises(InputError) as caught:
        READERS["parquet"].check(shard, Store(), source)
    assert str(caught.value) == f"{uri}: {message}"


def test_a_check_passes_what_can_be_read(tmp_path):
    (tmp_path / "s.parquet").write_bytes(parquet_file({"image": [CAT], "label": ["cat"]}))
    source = ParquetInput(uri=str(tmp_path), label_column="label")
    (shard,) = list_shards(source, Store())
    READERS["parquet"].check(shard, Store(), source)


@pytest.mark.parametrize("data", [b"", b"text" * 100, parquet_file({"image": [CAT]})[:-1]])
def test_what_is_not_parquet_is_unreadable(read, data):
    with pytest.raises(ShardUnreadable, match=r"s\.parquet: not a Parquet file: .*arquet"):
        read(data, "s.parquet")


def test_a_damaged_file_says_nothing_of_the_settings(tmp_path):
    (tmp_path / "s.parquet").write_bytes(parquet_file({"image": [CAT]})[:-1])
    source = ParquetInput(uri=str(tmp_path))
    (shard,) = list_shards(source, Store())
    READERS["parquet"].check(shard, Store(), source)


def test_a_value_beyond_the_bound_is_too_large(read, monkeypatch):
    monkeypatch.setattr(readers.parquet, "MAX_ENCODED", 10)
    rows = read(parquet_file({"image": [bytes(11), bytes(10)]}), "s.parquet")
    assert [(len(row.data), row.fault and row.fault.status) for row in rows] == [(0, "too_large"), (10, None)]


def test_a_damaged_row_group_is_named(read):
    data = bytearray(parquet_file({"image": [noise(20, 20, seed).tobytes() for seed in range(4)]}))
    second = data.index(noise(20, 20, 2).tobytes()[:50])
    data[second - 12 : second] = b"\xff" * 12
    with pytest.raises(ShardUnreadable, match="damaged in row group 1 of 2"):
        read(bytes(data), "s.parquet")


def test_a_parquet_file_reads_only_the_columns_it_needs(read):
    other = np.random.default_rng(0).bytes(10**6)
    struct = pa.array([{"bytes": CAT, "path": "a", "thumbnail": other}])
    reads = []

    class Recorded(io.BytesIO):
        def read(self, size=-1):
            found = super().read(size)
            reads.append(len(found))
            return found

    class RecordingStore(Store):
        def open(self, stored):
            with super().open(stored) as file:
                return Recorded(file.read())

    (row,) = read(parquet_file({"image": struct, "big": [other]}), "s.parquet", store=RecordingStore())
    assert (row.data, row.source) == (CAT, "a")
    assert sum(reads) < 200_000


def image_rows(folder, store=None, label_names=None, change=lambda: None):
    source, store = ImagesInput(uri=str(folder), group_size=100), store or Store()
    (shard,), _ = list_groups(source, store, Record())
    change()
    return list(READERS["images"].read(shard, store, source, label_names))


def test_single_images_take_key_and_label_from_their_path(tmp_path):
    for name, data in {"a.png": CAT, "dogs/b.jpg": DOG, "x/1/c.png": b"", "x/cats/d.png": CAT}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    expected = [
        EncodedImage("a.png", CAT),
        EncodedImage("dogs/b.jpg", DOG, "dogs"),
        EncodedImage("x/1/c.png", b"", "1", fault=Fault("empty", "no bytes")),
        EncodedImage("x/cats/d.png", CAT, "cats"),
    ]
    assert image_rows(tmp_path) == expected
    assert image_rows(tmp_path, label_names=("zero", "one"))[2].label == "one"


def test_many_images_come_in_order_and_few_at_a_time(tmp_path):
    for number in range(60):
        (tmp_path / f"{number:03d}.png").write_bytes(b"%d" % number)
    opened = []

    class Watched(Store):
        def open(self, stored):
            opened.append(stored.uri)
            return super().open(stored)

    source, store = ImagesInput(uri=str(tmp_path)), Watched()
    (shard,), _ = list_groups(source, store, Record())
    rows = READERS["images"].read(shard, store, source, None)
    assert next(rows).data == b"0"
    assert len(opened) <= 17
    assert [row.data for row in rows] == [b"%d" % number for number in range(1, 60)]
    assert len(opened) == 60
    half = READERS["images"].read(shard, store, source, None)
    next(half)
    half.close()  # stops fetching
    assert len(opened) <= 60 + 17


def test_an_image_replaced_or_removed_since_the_listing_is_said_so(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(CAT)
    with pytest.raises(ObjectChanged, match=r"a\.png: replaced"):
        image_rows(tmp_path, change=lambda: path.write_bytes(DOG))
    with pytest.raises(ObjectChanged, match=r"a\.png: removed"):
        image_rows(tmp_path, change=path.unlink)


def test_an_image_beyond_the_bound_is_not_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(readers.images, "MAX_ENCODED", 10)
    (tmp_path / "a.png").write_bytes(CAT)
    (row,) = image_rows(tmp_path)
    assert (row.data, row.fault.status) == (b"", "too_large")


def test_label_names_are_a_list_or_a_json_list_at_a_uri(tmp_path):
    path = tmp_path / "names.json"
    assert resolve_names(None, Store()) is None
    assert resolve_names(("cat",), Store()) == ("cat",)
    path.write_text(json.dumps(["cat", "dög"]))
    assert resolve_names(str(path), Store()) == ("cat", "dög")
    for text in ("cat\ndog", '{"0": "cat"}', "[1, 2]"):
        path.write_text(text)
        with pytest.raises(InputError, match=rf"^{path}: not a JSON list of names[^\n]*$"):
            resolve_names(str(path), Store())
    with pytest.raises(NotFound):
        resolve_names(f"{path}.not", Store())
