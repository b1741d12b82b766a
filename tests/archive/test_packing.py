"""Packed and read back: the same images, labels and order, for every format and name."""

import random
import tarfile
from pathlib import Path

import pytest
from hostile import grey16_png, jpeg, parquet_file, png
from mutations import valid_images

from gradosr.archive import readers
from gradosr.archive.packing import pack_shards
from gradosr.archive.readers import every_image
from gradosr.config import ImagesInput, PackJob, ParquetInput, TarInput
from gradosr.config.inputs import InputSettings
from gradosr.errors import InputError
from gradosr.store import Store

Rows = list[tuple[bytes, str | None]]
"""Bytes and label of each image, in order."""

STEPS = (
    *("img", "img_2", "img_2_2", "a", "a.b", "a.c", "A", "_", "__MACOSX", "._0001", ".hidden", "_MG_1234", "..", "."),
    *("", " ", "a b", "naïve", "日本", "x" * 300, "é" * 130, "n\0ul", "line\nbreak", "\x1b[31m", "back\\slash", "a#2"),
    *("http:", "s.tar#a", "0", "-", "--help", "__x__", "a.cls", "con"),
)
SUFFIXES = (
    "",
    ".jpg",
    ".JPG",
    ".jpeg",
    ".png",
    ".tif",
    ".tiff",
    ".jp2",
    ".ppm",
    ".avif",
    ".heic",
    ".cls",
    ".json",
    ".x",
)
LABELS = (None, "cat", "dog", "1", "", "a b", "日本", "x.cls", "sp\nace", "x" * 4096)
CONTENTS = (b"", b"text", b"BM", b"\0" * 1536, grey16_png([1, 2]), *(data for _, data in valid_images()))


def packed(source: InputSettings, target: Path, **settings: object) -> Rows:
    """Pack the images of `source` into tars, and return the rows that come back from them."""
    job = PackJob.model_validate({"input": source, "output": str(target), **settings})
    counts = pack_shards(job, lambda _: None)
    found = rows(TarInput(uri=f"{target}/"))
    assert counts["images"] == len(found)
    return found


def members(path: Path) -> list[str]:
    with tarfile.open(path) as archive:
        return archive.getnames()


def rows(source: InputSettings) -> Rows:
    return [(image.data, image.label or None) for image in every_image(source, Store())]  # type: ignore[arg-type]


def test_any_rows_come_back_as_they_were(tmp_path: Path) -> None:
    for seed in range(10):
        rng = random.Random(seed)
        folder = tmp_path / f"{seed}"
        folder.mkdir()
        structs: list[dict[str, object] | None] = []
        for _ in range(rng.randint(1, 40)):
            path = "/".join(rng.choice(STEPS) for _ in range(rng.choice([1, 1, 1, 2, 3, 14]))) + rng.choice(SUFFIXES)
            image = {"bytes": rng.choice(CONTENTS), "path": rng.choice([path, path, path, None])}
            structs.append(rng.choice([image] * 9 + [None]))
        labels = [rng.choice(LABELS) for _ in structs]
        (folder / "s.parquet").write_bytes(parquet_file({"image": structs, "label": labels}, row_group_size=7))
        source = ParquetInput(uri=f"{folder}/s.parquet", label_column="label")
        back = packed(source, folder / "packed", images_per_shard=rng.choice([1, 3, 1000]))
        assert back == rows(source), f"seed {seed}"
        names = [name for tar in (folder / "packed").iterdir() for name in members(tar)]
        assert len(names) == len(set(names)), f"seed {seed}"
        assert back == packed(TarInput(uri=f"{folder}/packed/"), folder / "again"), f"seed {seed}"


@pytest.mark.parametrize("paths", [["img.jpg", "img.jpg", "img_2.jpg"], ["a.jpg", "a.png", "a_2.jpg"]])
def test_names_that_meet_keep_their_labels(tmp_path: Path, paths: list[str]) -> None:
    images = [{"bytes": jpeg(8, 8 + number), "path": path} for number, path in enumerate(paths)]
    (tmp_path / "s.parquet").write_bytes(parquet_file({"image": images, "label": ["cat", "dog", "ship"]}))
    source = ParquetInput(uri=f"{tmp_path}/s.parquet", label_column="label")
    assert packed(source, tmp_path / "packed") == rows(source)


def test_rows_without_a_path_come_back_in_every_format(tmp_path: Path) -> None:
    images = [data for _, data in valid_images()] + [None, b"", b"no image"]
    (tmp_path / "scans.parquet").write_bytes(parquet_file({"image": images}))
    source = ParquetInput(uri=f"{tmp_path}/scans.parquet")
    assert packed(source, tmp_path / "packed") == rows(source) == [(data or b"", None) for data in images]


def test_single_files_come_back_with_their_folders_as_labels(tmp_path: Path) -> None:
    for number, (suffix, data) in enumerate(valid_images()):
        folder = tmp_path / "images" / ("cat", "d.og", "a b")[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"img.{number % 5}.{suffix}").write_bytes(data)
    source = ImagesInput(uri=f"{tmp_path}/images/")
    assert packed(source, tmp_path / "packed") == rows(source)


@pytest.mark.parametrize("label", [" cat", "cat\n", "x" * 4097])
def test_a_label_that_would_come_back_as_another_is_refused(tmp_path: Path, label: str) -> None:
    (tmp_path / "s.parquet").write_bytes(parquet_file({"image": [png()], "label": [label]}))
    with pytest.raises(InputError, match=r"s\.parquet#0: the label .* a \.cls file holds none with spaces around it"):
        packed(ParquetInput(uri=f"{tmp_path}/s.parquet", label_column="label"), tmp_path / "packed")


def test_an_image_without_its_bytes_is_not_packed_as_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers.parquet, "MAX_ENCODED", 10)
    (tmp_path / "s.parquet").write_bytes(parquet_file({"image": [png()]}))
    with pytest.raises(InputError, match=r"s\.parquet#0: .* encoded bytes are more than .*; without its bytes"):
        packed(ParquetInput(uri=f"{tmp_path}/s.parquet"), tmp_path / "packed")
