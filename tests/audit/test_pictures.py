"""Pictures out of little real archives, and what is shown where there is none."""

import io
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from bombs import scan_bomb
from hostile import BLUE, GREEN, RED, bomb_png, damaged_png, jpeg, noise, oriented, parquet_file, png, tar
from little_memory import in_little_memory
from PIL import Image

from gradosr.archive.groups import Record
from gradosr.archive.readers import READERS
from gradosr.archive.shards import list_shards, locate
from gradosr.audit import pictures
from gradosr.audit.pictures import Pictures, fetch
from gradosr.audit.rows import id_of
from gradosr.config import ImagesInput, Input, ParquetInput, TarInput
from gradosr.errors import StoreError
from gradosr.store import Store

COLOURS = (RED, GREEN, BLUE)


def row(key: str, shard: str = "", width: int | None = None, height: int | None = None) -> dict[str, Any]:
    return {"id": id_of(key), "key": key, "shard": shard, "row": 0, "width": width, "height": height}


def rows_in(source: Input, store: Store | None = None) -> list[dict[str, Any]]:
    """Rows of a run's table over an archive."""
    store = store or Store()
    shards, _groups = READERS[source.kind].find(source, store, Record(), None)
    return [
        row(image.key, shard.name)
        for shard in shards
        for image in READERS[source.kind].read(shard, store, source, None)
    ]


def colour(jpeg_bytes: bytes | None) -> tuple[int, ...]:
    """0 or 1 of red, green and blue, in the middle."""
    assert jpeg_bytes
    image = Image.open(io.BytesIO(jpeg_bytes))
    return tuple(round(value / 255) for value in image.getpixel((image.width // 2, image.height // 2)))  # type: ignore[union-attr]


def shown(found: Pictures, rows: list[dict[str, Any]]) -> list[tuple[int, ...] | str | None]:
    """Return the colour of each row, or the kind of its placeholder."""
    return [one.kind or colour(one.thumbnail) for one in (found.by_id[row["id"]] for row in rows)]


def bits(colour: tuple[int, int, int]) -> tuple[int, ...]:
    return tuple(value // 255 for value in colour)


def tar_archive(folder: Path) -> TarInput:
    members = [(f"{i}.jpg", jpeg(colour=COLOURS[i])) for i in range(3)]
    (folder / "a.tar").write_bytes(tar([*members[:2], ("1.cls", b"frog"), ("1.jpg", jpeg(colour=BLUE)), members[2]]))
    (folder / "b.tar.gz").write_bytes(tar([("x/./0.png", png(colour=GREEN))], mode="w:gz"))
    return TarInput(uri=str(folder))


def parquet_archive(folder: Path) -> ParquetInput:
    images = [jpeg(colour=one) for one in (*COLOURS, RED, BLUE)]
    (folder / "a.parquet").write_bytes(parquet_file({"image": images}, row_group_size=2))
    return ParquetInput(uri=str(folder))


def images_archive(folder: Path) -> ImagesInput:
    for name, one in zip(("a/1.jpg", "a/2.png", "é #?.jpg"), COLOURS, strict=True):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(jpeg(colour=one) if name.endswith("jpg") else png(colour=one))
    return ImagesInput(uri=str(folder))


@pytest.mark.parametrize("archive", [tar_archive, parquet_archive, images_archive])
def test_every_row_gets_its_own_picture(tmp_path: Path, archive: Callable[[Path], Input]) -> None:
    source, store = archive(tmp_path), Store()
    rows = rows_in(source)
    expected = {
        "tar": [RED, GREEN, BLUE, BLUE, GREEN],  # 1.jpg comes again in blue
        "parquet": [RED, GREEN, BLUE, RED, BLUE],
        "images": [RED, GREEN, BLUE],
    }[source.kind]
    assert shown(fetch(store, source, rows), rows) == [bits(one) for one in expected]
    for some in (rows[::-1], rows[1:2], rows[-1:], [rows[0], rows[-1], rows[0]]):
        found = fetch(store, source, some)
        assert list(found.by_id) == list(dict.fromkeys(one["id"] for one in some))
        assert shown(found, some) == [bits(expected[rows.index(one)]) for one in some]


@pytest.mark.parametrize("archive", [tar_archive, parquet_archive, images_archive])
def test_picking_gives_what_reading_gives(tmp_path: Path, archive: Callable[[Path], Input]) -> None:
    source, store = archive(tmp_path), Store()
    reader = READERS[source.kind]
    shards, _groups = READERS[source.kind].find(source, store, Record(), None)
    for shard in shards:
        read = {image.key: image.data for image in reader.read(shard, store, source, None)}
        for keys in (
            frozenset(read),
            frozenset(list(read)[1:2]),
            frozenset({"none", *list(read)[-1:]}),
            frozenset[str](),
        ):
            picked = {image.key: image.data for image in reader.pick(shard, store, source, keys)}
            assert picked == {key: read[key] for key in read if key in keys}


class Counting(Store):
    """Counts what is opened, and the bytes that are read."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.bytes = 0

    def open(self, stored: Any) -> Any:
        self.opened.append(stored.uri)
        store, file = self, super().open(stored)

        class Counted(io.RawIOBase):
            def readable(self) -> bool:
                return True

            def seekable(self) -> bool:
                return True

            def seek(self, *where: int) -> int:
                return file.seek(*where)

            def tell(self) -> int:
                return file.tell()

            def readinto(self, buffer: Any) -> int:
                data = file.read(len(buffer))
                store.bytes += len(data)
                buffer[: len(data)] = data
                return len(data)

            def close(self) -> None:
                file.close()
                super().close()

        return Counted()


def test_a_shard_is_opened_once_and_read_as_far_as_needed(tmp_path: Path) -> None:
    big = [(f"{i:02}.png", _noisy(i)) for i in range(20)]
    (tmp_path / "a.tar").write_bytes(tar(big))
    source, store = TarInput(uri=str(tmp_path)), Counting()
    fetch(store, source, [row("a.tar#03.png", "a.tar"), row("a.tar#01.png", "a.tar")])
    assert len(store.opened) == 1
    assert store.bytes < 3 * len(big[0][1])  # two of twenty, and headers


def _noisy(seed: int) -> bytes:
    body = io.BytesIO()
    noise(256, 256, seed).save(body, "PNG")
    return body.getvalue()


def test_of_a_parquet_file_only_the_row_groups_that_are_needed(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(parquet_file({"image": [_noisy(i) for i in range(8)]}, row_group_size=1))
    store = Counting()
    found = fetch(store, ParquetInput(uri=str(tmp_path)), [row("a.parquet#6", "a.parquet")])
    assert found.shown == 1
    assert store.bytes < 2.5 * len(_noisy(6))


def test_pictures_are_upright_small_and_clean(tmp_path: Path) -> None:
    wide = Image.new("RGB", (2000, 1000), GREEN)
    (tmp_path / "o.jpg").write_bytes(oriented(wide, "JPEG", 6))
    (tmp_path / "strip.png").write_bytes(png(20_000, 1, RED))
    source = ImagesInput(uri=str(tmp_path))
    found = fetch(Store(), source, [row("o.jpg", width=1000, height=2000), row("strip.png")])
    upright, strip = found.by_id.values()
    assert (upright.width, upright.height) == (128, 256)
    assert Image.open(io.BytesIO(upright.larger or b"")).size == (240, 480)
    assert not Image.open(io.BytesIO(upright.thumbnail or b"")).getexif()
    assert (strip.width, strip.height) == (256, 1)


def test_a_small_image_is_not_enlarged(tmp_path: Path) -> None:
    (tmp_path / "s.png").write_bytes(png(32, 20))
    (one,) = fetch(Store(), ImagesInput(uri=str(tmp_path)), [row("s.png", width=32, height=20)]).by_id.values()
    assert (one.width, one.height) == (32, 20)


# What has no picture


def placeholders(found: Pictures) -> dict[str | None, str | None]:
    return {one.kind: one.reason for one in found.by_id.values()}


def test_what_cannot_be_shown_says_why_and_is_counted(tmp_path: Path) -> None:
    members = {
        "good.png": png(), "cut.png": png()[:60], "damaged.png": damaged_png(), "text.png": b"<script>alert(1)",
        "bomb.png": bomb_png(), "scans.jpg": scan_bomb(500), "empty.jpg": b"",
    }  # fmt: skip
    (tmp_path / "a.tar").write_bytes(tar(members.items()))
    rows = [row(f"a.tar#{name}", "a.tar") for name in members] + [
        row("a.tar#none.png", "a.tar"),
        row("b.tar#x.png", "b.tar"),
    ]
    found = fetch(Store(), TarInput(uri=str(tmp_path)), rows)
    kinds = [found.by_id[one["id"]].kind for one in rows]
    assert kinds == [None, *["undecodable"] * 3, "too_large", *["undecodable"] * 2, "unreadable", "deleted"]
    assert found.missing == {"undecodable": 5, "too_large": 1, "unreadable": 1, "deleted": 1}
    assert found.shown == 1
    assert all(one.reason for one in found.by_id.values() if one.kind)


@pytest.mark.parametrize("archive", [tar_archive, parquet_archive])
def test_a_shard_that_was_replaced_is_not_taken_for_the_old_one(
    tmp_path: Path, archive: Callable[[Path], Input]
) -> None:
    source, store = archive(tmp_path), Store()
    parts = {shard.part for shard in list_shards(source, store)}
    rows = [one for one in rows_in(source) if one["shard"].startswith("a.")]
    assert fetch(store, source, rows, parts).shown == len(rows)
    path = tmp_path / rows[0]["shard"]
    path.write_bytes(path.read_bytes() + b"\0" * 512)
    assert set(placeholders(fetch(store, source, rows, parts))) == {"changed"}
    path.unlink()
    assert set(placeholders(fetch(store, source, rows, parts))) == {"deleted"}


def test_a_single_image_of_another_size_was_changed(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(40, 30))
    source = ImagesInput(uri=str(tmp_path))
    found = fetch(Store(), source, [row("a.png", width=40, height=31), row("gone.png")])
    assert placeholders(found) == {
        "changed": "was 40 x 31 pixels, is 40 x 30",
        "deleted": found.by_id[id_of("gone.png")].reason,
    }


def test_what_a_table_claims_opens_nothing_outside_the_archive(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png())
    archive = tmp_path / "archive"
    (archive / "__MACOSX").mkdir(parents=True)
    (archive / "__MACOSX" / "a.png").write_bytes(png())
    (archive / "notes.txt").write_bytes(png())
    keys = (
        "../secret.png",
        str(tmp_path / "secret.png"),
        "x/../../secret.png",
        "__MACOSX/a.png",
        "notes.txt",
        "",
        "/",
        "\0.png",
    )
    found = fetch(Store(), ImagesInput(uri=str(archive)), [row(key) for key in keys])
    assert found.shown == 0
    assert set(found.missing) <= {"deleted", "unreadable"}


def test_names_that_are_not_utf8_are_found(tmp_path: Path) -> None:
    name = b"caf\xe9.png".decode(errors="surrogateescape")
    (tmp_path / name).write_bytes(png(colour=GREEN))
    source = ImagesInput(uri=str(tmp_path))
    (listed,) = rows_in(source)
    assert listed["key"] == r"caf\xe9.png"
    assert shown(fetch(Store(), source, [listed]), [listed]) == [bits(GREEN)]
    assert locate(source, listed["key"], Store()).uri.endswith(name)


def test_a_damaged_shard_costs_its_own_pictures_alone(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"no tar at all" * 100)
    (tmp_path / "b.tar").write_bytes(tar([("x.png", png())]))
    rows = [row("a.tar#x.png", "a.tar"), row("b.tar#x.png", "b.tar")]
    found = fetch(Store(), TarInput(uri=str(tmp_path)), rows)
    assert [found.by_id[one["id"]].kind for one in rows] == ["unreadable", None]


@pytest.mark.parametrize("error", [StoreError("lost"), MemoryError(), RecursionError(), OSError("disk"), ValueError()])
def test_nothing_that_is_raised_ends_the_audit(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Store):
        def open(self, stored: Any) -> Any:
            raise error

    source = tar_archive(tmp_path)
    found = fetch(Broken(), source, rows_in(source))
    assert set(found.missing) == {"not_fetched" if isinstance(error, MemoryError) else "unreadable"}


def test_there_is_a_bound_on_number_and_time(tmp_path: Path) -> None:
    source = tar_archive(tmp_path)
    rows = rows_in(source)
    found = fetch(Store(), source, rows, limit=2)
    assert (found.shown, found.missing) == (2, {"not_fetched": 3})
    assert fetch(Store(), source, rows, seconds=-1).missing == {"not_fetched": 5}
    heard: list[tuple[int, int]] = []
    fetch(Store(), source, rows, tell=lambda done, total: heard.append((done, total)))
    assert heard == [(1, 2), (2, 2)]


def test_pictures_from_a_real_store(store: Store, bucket: str) -> None:
    store.write(f"{bucket}/archive/a b.tar", tar([("é.png", png(colour=BLUE))]))
    source = TarInput(uri=f"{bucket}/archive/")
    rows = rows_in(source, store)
    assert shown(fetch(store, source, rows, {one.part for one in list_shards(source, store)}), rows) == [bits(BLUE)]


def test_rows_of_a_document_come_once_and_the_typical_first() -> None:
    a, b, c, d = (row(key) for key in "abcd")
    groups: list[Mapping[str, Any]] = [{"typical": [a, b], "borderline": [c]}]
    assert pictures.rows_of({"groups": {"items": groups}, "highest": [b, d, a]}) == [a, b, d, c]


def test_ids_are_file_names() -> None:
    for key in ("../../etc/passwd", "a\0b", "\udce9", "=1+1", "x" * 100_000):
        assert len(id_of(key)) == 16
        assert id_of(key).isalnum()


def placeholder(folder: str) -> str:
    source = TarInput(uri=folder)
    (found,) = fetch(Store(), source, [row("a.tar#0.png", "a.tar", 6000, 6000)]).by_id.values()
    return f"{found.kind}: {found.reason}"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_a_picture_that_memory_is_too_small_for_is_not_the_archives_fault(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar([("0.png", png(6000, 6000))]))
    assert in_little_memory(placeholder, 60 << 20, str(tmp_path)).startswith("not_fetched: this machine is at fault, ")
