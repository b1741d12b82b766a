"""Which members of a tar are images, where their labels lie, and what becomes of the others."""

import gzip
import io
import json
import lzma
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hostile import jpeg, parquet_file, png, tar
from tiny import labelled_tar, local_job, picture, rows_of, run_here

from gradosr.archive import readers
from gradosr.archive.image import EncodedImage, Fault
from gradosr.archive.readers import READERS, tar_links
from gradosr.archive.shards import list_shards
from gradosr.config import TarInput
from gradosr.errors import ConfigError, MachineFault
from gradosr.run.console import summary_report
from gradosr.store import Store

CAT, DOG = png(8, 8), jpeg(9, 9)
APPLE = b"\x00\x05\x16\x07" + bytes(160)


class Shelf:
    """A folder for one shard at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, data: bytes, name: str = "s.tar") -> tuple[list[EncodedImage], Counter[str]]:
        """Rows and what was passed over; every way to read agrees on what is an image."""
        (self.folder / name).write_bytes(data)
        source = TarInput(uri=str(self.folder / name))
        (shard,) = list_shards(source, Store())
        reader = READERS["tar"]
        found, rows = reader.read(shard, Store(), source, None), []
        try:
            while True:
                rows.append(next(found))
        except StopIteration as end:
            passed_over = end.value
        cut = any(row.fault and row.fault.error.startswith("archive cut") for row in rows)
        assert cut or reader.images_in(shard, Store(), source) == len(rows)
        for row in rows:
            (picked,) = reader.pick(shard, Store(), source, frozenset([row.key]))
            assert (picked.data, picked.fault) == (row.data, row.fault)
        return rows, passed_over


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def named(rows: list[EncodedImage]) -> list[tuple[str, str | None]]:
    return [(row.key.removeprefix("s.tar#"), row.label) for row in rows]


def test_what_macos_keeps_beside_images_is_no_image(shelf: Shelf) -> None:
    """A tar made on macOS: `._0001.JPG` between an image and its label took the label away."""
    rows, passed_over = shelf.read(
        tar(
            [
                ("./._0001.JPG", APPLE), ("./0001.JPG", DOG), ("./._0001.cls", APPLE), ("./0001.cls", b"dog"),
                ("./0002.JPG", DOG), ("./._0002.JPG", APPLE), ("./0002.cls", b"cat"),
                ("__MACOSX/x/._0003.JPG", APPLE), ("__MACOSX/0003.jpg", APPLE), ("x/.AppleDouble/3.jpg", APPLE),
                ("._x/4.png", CAT),
            ]
        )
    )  # fmt: skip
    assert named(rows) == [("0001.JPG", "dog"), ("0002.JPG", "cat"), ("._x/4.png", None)]
    assert passed_over == {"AppleDouble": 6}


def test_members_that_are_no_images_are_counted_by_kind(shelf: Shelf) -> None:
    rows, passed_over = shelf.read(
        with_links(
            ("a.png", CAT), ("a.json", b"{}"), ("a.left.JSON", b"{}"), ("a.ico", b"x"), ("photo", DOG),
            link("x/", "", tarfile.DIRTYPE), link("p.png", "", tarfile.FIFOTYPE), ("b.jpg", DOG), (".DS_Store", b"x"),
            ("b.tar.lz4", b"x"), ("b.cls", b"1"), ("c.", b""),
        )
    )  # fmt: skip
    assert named(rows) == [("a.png", None), ("b.jpg", "1")]
    assert passed_over == {"json": 2, "ico": 1, "without ending": 3, "special file": 1, "tar.lz4": 1}


def test_kinds_have_a_bound(shelf: Shelf) -> None:
    rows, passed_over = shelf.read(tar([("a.png", CAT), *((f"a.e{number}", b"") for number in range(100))]))
    assert len(rows) == 1
    assert (len(passed_over), passed_over.total()) == (41, 100)


def test_a_label_lies_anywhere_in_the_run_of_its_key_or_is_told(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, passed_over = shelf.read(
        tar(
            [
                ("a.png", CAT),
                ("z.json", b""),
                ("q", b""),
                ("a.txt", b""),
                ("a.cls", b"cat"),
                ("b.CLS", b"2"),
                ("b.png", CAT),
            ]
        )
    )
    assert named(rows) == [("a.png", "cat"), ("b.png", "2")]
    assert passed_over == {"json": 1, "without ending": 1, "txt": 1}

    apart = "cls apart from their images"
    rows, passed_over = shelf.read(tar([("a.png", CAT), ("b.png", CAT), ("a.cls", b"cat"), ("b.cls", b"dog")]))
    assert (named(rows), passed_over) == ([("a.png", None), ("b.png", None)], {apart: 2})
    rows, passed_over = shelf.read(tar([("a.cls", b"1"), ("a.cls", b"2"), ("a.png", CAT), ("b.cls", b"")]))
    assert (named(rows), passed_over) == ([("a.png", "2")], {apart: 1})

    # The key ends at the first dot, so that 22.05.cls is the label of none: webdataset/webdataset issue 237.
    rows, passed_over = shelf.read(tar([("x.1/22.05.png", CAT), ("x.1/22.05.cls", b"cat"), ("x.1/2.png", CAT)]))
    assert (named(rows), passed_over) == ([("x.1/22.05.png", None), ("x.1/2.png", None)], {apart: 1})

    monkeypatch.setattr(readers.tar, "_MAX_SAMPLE", 1000)
    late = [("a.1.png", bytes(600)), ("a.2.png", bytes(600)), ("a.3.png", bytes(600)), ("a.cls", b"cat")]
    rows, passed_over = shelf.read(tar(late))
    assert ([label for _, label in named(rows)], passed_over) == ([None, None, "cat"], {apart: 1})


@pytest.mark.parametrize("first", ["png", "cls"])
def test_names_that_come_again_begin_a_sample_with_its_own_label(shelf: Shelf, first: str) -> None:
    """Members appended by `tar -r`, or archives of one sample each put together: webdataset/webdataset issue 157."""
    samples = [[("a.png", CAT), ("a.cls", b"cat")], [("a.png", DOG), ("a.cls", b"dog")], [("a.png", CAT)]]
    rows, passed_over = shelf.read(
        tar([member for sample in samples for member in sample[:: 1 if first == "png" else -1]])
    )
    assert named(rows) == [("a.png", "cat"), ("a.png#2", "dog"), ("a.png#3", None)]
    assert passed_over == {}


@pytest.mark.parametrize("name", ["s.tar", "s.tar.gz", "s.tar.xz"])
def test_archives_put_together_with_cat_are_read_to_the_last(shelf: Shelf, name: str) -> None:
    """An end mark lies between them, where tarfile and so webdataset stop: borgbackup/borg issue 7432."""
    parts = [tar([("a.png", CAT), ("a.cls", b"cat")]), bytes(2**18), tar([]), tar([("b.png", DOG), ("a.png", DOG)])]
    compress = {"s.tar": bytes, "s.tar.gz": gzip.compress, "s.tar.xz": lzma.compress}[name]
    for data in (b"".join(map(compress, parts)), compress(b"".join(parts))):
        rows, _ = shelf.read(data, name)
        assert [(row.key.removeprefix(f"{name}#"), row.label, row.data) for row in rows] == [
            ("a.png", "cat", CAT), ("b.png", None, DOG), ("a.png#2", None, DOG),
        ]  # fmt: skip
    rows, _ = shelf.read(with_links(("a.png", CAT)) + with_links(link("b.png", "a.png")))
    assert [row.data for row in rows] == [CAT, CAT]


def test_what_follows_an_end_mark_and_is_no_tar_is_a_cut(shelf: Shelf) -> None:
    """A page of zeros within an archive looks like its end: the images behind it must not vanish without a word."""
    data = bytearray(tar([("a.png", CAT), ("b.png", bytes(range(256)) * 40), ("c.png", CAT)]))
    data[1024:2048] = bytes(1024)  # the header of b.png, and the beginning of its content
    rows, _ = shelf.read(bytes(data))
    assert [(row.key, row.fault and row.fault.error) for row in rows] == [
        ("s.tar#a.png", None),
        ("s.tar#truncated", "archive cut or damaged: no tar member behind an end mark: invalid header"),
    ]


def link(name: str, target: str, kind: bytes = tarfile.LNKTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def with_links(*members: tuple[str, bytes] | tarfile.TarInfo) -> bytes:
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                header = tarfile.TarInfo(member[0])
                header.size = len(member[1])
                archive.addfile(header, io.BytesIO(member[1]))
    return body.getvalue()


def symbolic(name: str, target: str) -> tarfile.TarInfo:
    return link(name, target, tarfile.SYMTYPE)


LINKED = (
    ("x/a.png", CAT), symbolic("x/to-later.png", "../y/z.png"), link("b.png", "x/a.png"), link("b.cls", "labels/cat"),
    ("./blob", DOG), link("c.jpg", "blob"), link("d.jpg", "./blob"), ("labels/dog", b"dog"),
    symbolic("d.cls", "./labels//dog"), ("x/a.png", DOG),
    link("x/again.png", "x/a.png"), symbolic("x/chain.png", "again.png"), ("y/z.png", CAT),
    symbolic("l1.png", "l2.png"), symbolic("l2.png", "l1.png"), symbolic("out.png", "/etc/passwd"),
    symbolic("up.png", "../y/z.png"), link("after.png", "last.png"), ("last.png", DOG), symbolic("dir.png", "x"),
    symbolic("empty.png", ""),
)  # fmt: skip


@pytest.mark.parametrize("name", ["s.tar", "s.tar.gz"])
def test_each_linked_image_is_one_row_with_its_targets_bytes(shelf: Shelf, name: str) -> None:
    """GNU tar writes a hard link for each further name of a file; deduplicated archives are full of them."""
    data = with_links(*LINKED)
    rows, passed_over = shelf.read(gzip.compress(data) if name.endswith("gz") else data, name)
    nowhere = "a symbolic link to {}, which is no file of this shard"
    found = [(row.key.removeprefix(f"{name}#"), row.label, row.data or (row.fault and row.fault.error)) for row in rows]
    assert found == [
        ("x/a.png", None, CAT), ("x/to-later.png", None, CAT), ("b.png", None, CAT),
        ("c.jpg", None, DOG), ("d.jpg", "dog", DOG), ("x/a.png#2", None, DOG), ("x/again.png", None, DOG),
        ("x/chain.png", None, DOG), ("y/z.png", None, CAT), ("l1.png", None, nowhere.format("l2.png")),
        ("l2.png", None, nowhere.format("l1.png")), ("out.png", None, nowhere.format("/etc/passwd")),
        ("up.png", None, nowhere.format("../y/z.png")),
        ("after.png", None, "a hard link to last.png, which is no file of this shard"), ("last.png", None, DOG),
        ("dir.png", None, nowhere.format("x")), ("empty.png", None, nowhere.format("")),
    ]  # fmt: skip
    assert {row.fault.status for row in rows if row.fault} == {"unsupported"}
    assert passed_over == {"cls that cannot be read": 1, "without ending": 2}


def test_links_that_tar_makes_itself(shelf: Shelf, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.png").write_bytes(CAT)
    (photos / "b.png").hardlink_to(photos / "a.png")
    (photos / "c.png").symlink_to("b.png")
    with tarfile.open(tmp_path / "made.tar", "w") as archive:
        for name in ("a.png", "b.png", "c.png"):
            archive.add(photos / name, name)
        assert [member.type for member in archive.getmembers()] == [tarfile.REGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE]
    rows, _ = shelf.read((tmp_path / "made.tar").read_bytes())
    assert [row.data for row in rows] == [CAT] * 3


def test_a_link_to_what_cannot_be_read_has_its_reason_and_ends_nothing(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    sparse = tarfile.TarInfo("a.png")
    sparse.pax_headers = {"GNU.sparse.map": "0,9,3,1", "GNU.sparse.size": "99"}
    rows, _ = shelf.read(sparse.tobuf(tarfile.PAX_FORMAT) + with_links(link("b.png", "a.png"), ("c.png", CAT)))
    assert [row.fault for row in rows] == [Fault("unsupported", "a sparse tar member")] * 2 + [None]

    whole = with_links(symbolic("a.png", "z.png"), ("b.png", CAT), ("z.png", bytes(4000)))
    rows, _ = shelf.read(whole[: 512 * 6])
    assert [(row.key, row.fault and row.fault.status) for row in rows] == [
        ("s.tar#a.png", "truncated"), ("s.tar#b.png", None), ("s.tar#z.png", "truncated"),
    ]  # fmt: skip
    assert "a link to z.png, which is cut or damaged" in str(rows[0].fault)

    monkeypatch.setattr(readers.tar, "MAX_ENCODED", 1000)
    rows, _ = shelf.read(with_links(("a.png", bytes(1001)), link("b.png", "a.png")))
    assert [row.fault and row.fault.status for row in rows] == ["too_large", "too_large"]


def test_links_cost_bounded_memory_and_disk(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    members = [*((f"{number}.png", CAT) for number in range(4)), link("a.png", "0.png"), link("b.png", "3.png")]
    monkeypatch.setattr(tar_links, "_MAX_INDEX", 2 * 520)
    rows, _ = shelf.read(with_links(*members))
    assert [row.data for row in rows] == [CAT] * 5 + [b""]
    assert "a hard link to 3.png, which is no file of the first 2 members of this shard" in str(rows[-1].fault)
    monkeypatch.undo()
    monkeypatch.setattr(tar_links, "_MAX_COPY", 1500)
    monkeypatch.setattr(tar_links, "_CHUNK", 500)
    rows, _ = shelf.read(gzip.compress(with_links(*members)), "s.tar.gz")
    assert [row.data for row in rows] == [CAT] * 5 + [b""]
    assert "which is no file of the first 1500 bytes of this compressed shard" in str(rows[-1].fault)


def test_a_full_disk_is_no_fault_of_a_linked_image(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs a device that is always full")  # /dev/full, which Linux alone has
    monkeypatch.setattr(tar_links.tempfile, "TemporaryFile", lambda: open("/dev/full", "r+b", buffering=0))  # noqa: SIM115, PTH123
    with pytest.raises(MachineFault, match="No space left on device: a compressed archive with links is copied there"):
        shelf.read(gzip.compress(with_links(("a.png", CAT), link("b.png", "a.png"))), "s.tgz")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    folder.mkdir()
    members = [("0.png", picture(0)), ("._0.png", APPLE), ("0.cls", b"cat"), ("0.json", b"{}"), ("0.ico", b"")]
    (folder / "0.tar").write_bytes(tar(members))
    (folder / "1.tar").write_bytes(tar([("1.png", picture(1)), ("1.json", b"{}"), ("2.cls", b"cat")]))
    (folder / "2.tar").write_bytes(labelled_tar(2, 1))
    for name in ("_2.tar", "2.tar.lz4", "notes.txt", "more.txt"):
        (folder / name).write_bytes(b"x")
    return folder


def test_what_was_passed_over_is_in_the_stats_and_the_summary(archive: Path) -> None:
    job = local_job(archive.parent)
    expected = {
        "members": {"AppleDouble": 1, "json": 2, "ico": 1, "cls apart from their images": 1},
        "objects": {"hidden": 1, "tar.lz4": 1, "txt": 2},
    }
    _, summary = run_here(job)
    assert summary.passed_over == expected
    assert "5 members are no images: 2 json, 1 AppleDouble, 1 cls apart from their images, 1 ico" in summary_report(
        summary
    )
    assert "4 other objects of the input were left out: 2 txt, 1 hidden, 1 tar.lz4" in summary_report(summary)
    folder = archive.parent / "results"
    stats = json.loads((folder / "stats.json").read_text())
    assert stats["passed_over"] == expected
    assert pq.read_table(folder / "stats.parquet")["passed_over"].null_count == 1
    assert rows_of(folder, ("key", "label"))["0.tar#0.png"] == ("cat",)

    # The next run reads them from stats.parquet; one that finds no such file, from the footers.
    assert run_here(job)[1].passed_over == expected
    (folder / "stats.json").unlink()
    (folder / "stats.parquet").unlink()
    (archive / "2.tar").unlink()
    assert run_here(job)[1].passed_over == expected


def test_a_folder_of_before_has_nothing_to_tell(archive: Path) -> None:
    job = local_job(archive.parent)
    run_here(job)
    folder = archive.parent / "results"
    stats: dict[str, Any] = json.loads((folder / "stats.json").read_text())
    parts = pq.read_table(folder / "stats.parquet")["part"].to_pylist()
    old = {"counts": {"rows": 1, "ok": 1}, "seconds": {}}
    (folder / "stats.json").write_text(json.dumps({**stats, "parts": dict.fromkeys(parts, old)}))
    (folder / "stats.parquet").unlink()
    assert run_here(job)[1].passed_over["members"] == {}


@pytest.mark.parametrize("kind", ["images", "parquet"])
def test_results_inside_the_input_are_refused(tmp_path: Path, kind: str) -> None:
    """The pictures of a night's audit would be scored the next night."""
    (tmp_path / "a.png").write_bytes(picture(0))
    (tmp_path / "a.parquet").write_bytes(parquet_file({"image": [picture(0)]}))
    job = local_job(tmp_path, input={"kind": kind, "uri": f"{tmp_path}/"})
    with pytest.raises(ConfigError, match="lies inside the input"):
        run_here(job)
    job = local_job(tmp_path, input={"kind": kind, "uri": f"{tmp_path}/*"})
    assert run_here(job)[1].counts["ok"] == 1
