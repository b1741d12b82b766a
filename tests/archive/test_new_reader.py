"""A reader of zip files, which gradosr does not have: everything that a new input kind needs, and a test that it works.

In the package, `ZipInput` would stand in gradosr/config/inputs.py and be added to `Input` there, the functions would be
a file in gradosr/archive/readers/, and ENTRY a line of READERS. No other file would change.
"""

import io
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pytest
from hostile import BLUE, GREEN, RED, jpeg, tar
from PIL import Image
from pydantic import Field, create_model
from tiny import CLASSES, local_job, picture, rows_of, run_here

from gradosr.archive.image import EMPTY, EncodedImage, label_of
from gradosr.archive.packing import pack_shards
from gradosr.archive.readers import READERS, Reader, every_image
from gradosr.archive.shards import IMAGE_SUFFIXES, Shard
from gradosr.audit.pictures import fetch
from gradosr.audit.places import Prefixes, folder_of, shard_folder
from gradosr.audit.rows import RunTable, id_of
from gradosr.config import ImagesInput, Input, PackJob, ParquetInput, ScoreJob, TarInput, Uri
from gradosr.config.inputs import InputSettings
from gradosr.errors import InputError, ShardUnreadable
from gradosr.run.estimate import estimate
from gradosr.run.plan import prepare
from gradosr.store import Store

# --- The settings ---


class ZipInput(InputSettings):
    """Images in zip files, one shard per file; the folder an image lies in is its label."""

    suffixes = (".zip",)

    kind: Literal["zip"] = "zip"
    uri: Uri
    """Folder, prefix, glob or brace range of .zip files."""
    inside: str = ""
    """Folder within each file; images elsewhere are left out."""


# --- The file ---


def read(shard: Shard, store: Store, source: ZipInput, label_names: tuple[str, ...] | None) -> Iterator[EncodedImage]:
    with _opened(shard, store) as archive:
        for name in _names(archive, source):
            data, folder = archive.read(name), name.rpartition("/")[0].rpartition("/")[2]
            label = label_of(folder or None, label_names)
            yield EncodedImage(f"{shard.name}#{name}", data, label, fault=None if data else EMPTY)


def pick(shard: Shard, store: Store, source: ZipInput, keys: frozenset[str]) -> Iterator[EncodedImage]:
    with _opened(shard, store) as archive:
        for name in _names(archive, source):
            if (key := f"{shard.name}#{name}") in keys:
                yield EncodedImage(key, archive.read(name))


def check(shard: Shard, store: Store, source: ZipInput) -> None:
    with suppress(ShardUnreadable), _opened(shard, store) as archive:
        if not _names(archive, source):
            raise InputError(f"{shard.uri}: no images in {source.inside!r}; set input.inside")


def images_in(shard: Shard, store: Store, source: ZipInput) -> int:
    with _opened(shard, store) as archive:
        return len(_names(archive, source))


@contextmanager
def _opened(shard: Shard, store: Store) -> Iterator[zipfile.ZipFile]:
    with store.open(shard.stored) as file:
        try:
            archive = zipfile.ZipFile(file)
        except zipfile.BadZipFile as error:
            raise ShardUnreadable(f"{shard.uri}: not a zip file: {error}") from error
        yield archive


def _names(archive: zipfile.ZipFile, source: ZipInput) -> list[str]:
    return [
        name for name in archive.namelist() if name.startswith(source.inside) and name.lower().endswith(IMAGE_SUFFIXES)
    ]


# --- The line ---

ENTRY = Reader(read, pick, check, images_in)


@pytest.fixture(autouse=True)
def zip_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(READERS, "zip", ENTRY)


# Pydantic builds a model's union once, when the class is made: these stand for `Input` with one more name in it.
ZIP_TOO: Any = Annotated[ParquetInput | TarInput | ImagesInput | ZipInput, Field(discriminator="kind")]
Job: type[ScoreJob] = create_model("Job", __base__=ScoreJob, input=(ZIP_TOO, ...))
PackZips: type[PackJob] = create_model("PackZips", __base__=PackJob, input=(ZIP_TOO, ...))


def zip_file(members: dict[str, bytes]) -> bytes:
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return body.getvalue()


def members(first: int) -> dict[str, bytes]:
    """Three pictures in the folders of their labels."""
    return {f"x/{CLASSES[seed % 3]}/{seed}.png": picture(seed) for seed in range(first, first + 3)}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Two zip files with three pictures each and other files among them; in tars, the same pictures."""
    for folder, ending, make in (("zips", "zip", zip_file), ("tars", "tar", lambda some: tar(list(some.items())))):
        for place in range(2):
            path = tmp_path / folder / f"day-{place}" / f"a.{ending}"
            path.parent.mkdir(parents=True)
            path.write_bytes(make({**members(3 * place), "readme.txt": b"no image"}))
    return tmp_path / "zips"


def job_over(archive: Path, **changes: Any) -> ScoreJob:
    """The job as its YAML file would become it."""
    document = local_job(archive.parent).model_dump(mode="json")
    return Job.model_validate({**document, "input": {"kind": "zip", "uri": f"{archive}/", **changes}})


def test_a_run_scores_what_the_new_reader_reads(archive: Path) -> None:
    plan, summary = run_here(job_over(archive))
    assert [shard.name for shard in plan.shards] == ["day-0/a.zip", "day-1/a.zip"]
    assert (summary.counts["rows"], summary.counts["ok"], summary.failed, summary.quarantined) == (6, 6, {}, ())
    assert plan.fingerprint["input"] == {"kind": "zip", "uri": f"{archive}/", "label_names": None, "inside": ""}

    columns = ("key", "unknown_score", "label")
    rows = rows_of(archive.parent / "results", columns)
    assert sorted(rows) == sorted(f"day-{seed // 3}/a.zip#x/{CLASSES[seed % 3]}/{seed}.png" for seed in range(6))
    assert all(label == key.split("/")[-2] for key, (_, label) in rows.items())

    tars = local_job(archive.parent, input={"kind": "tar", "uri": f"{archive.parent}/tars/"}, output=f"{archive}-tars")
    run_here(tars)
    theirs = rows_of(Path(tars.output), columns)
    assert {key: score for key, (score, _) in rows.items()} == pytest.approx(
        {key.replace(".tar#", ".zip#"): score for key, (score, _) in theirs.items()}, abs=1e-6
    )
    assert not run_here(job_over(archive))[0].pending


def test_settings_that_do_not_fit_and_damage_are_reported(archive: Path) -> None:
    with pytest.raises(InputError, match=r"a\.zip: no images in 'y/'; set input\.inside"):
        prepare(job_over(archive, inside="y/"))
    with pytest.raises(InputError, match=r"no \.zip files there \(2 other objects: 2 tar\)"):
        prepare(job_over(archive.parent / "tars"))
    assert READERS["zip"].images_in(prepare(job_over(archive)).shards[0], Store(), ZipInput(uri=str(archive))) == 3

    (archive / "b.zip").write_bytes(b"not a zip file")
    _, summary = run_here(job_over(archive))
    assert (summary.quarantined, summary.failed, summary.counts["ok"]) == (("b.zip",), {}, 6)


def test_an_estimate_and_packing_read_it_too(archive: Path) -> None:
    found = estimate(prepare(job_over(archive)))
    assert found is not None
    assert (found.images, found.sample_shards) == (6, 2)

    source: Any = ZipInput(uri=str(archive), inside="x/cat")
    assert [image.key for image in every_image(source, Store())] == [
        "day-0/a.zip#x/cat/0.png",
        "day-1/a.zip#x/cat/3.png",
    ]
    job = PackZips.model_validate({"input": source, "output": str(archive.parent / "packed")})
    assert pack_shards(job, lambda _: None) == {"images": 2, "shards": 1}


def test_an_audit_finds_its_pictures_and_folders(archive: Path) -> None:
    colours = {"x/cat/red.jpg": RED, "x/dog/green.jpg": GREEN, "blue.jpg": BLUE}
    (archive / "day-0" / "a.zip").write_bytes(zip_file({name: jpeg(colour=one) for name, one in colours.items()}))
    run_here(job := job_over(archive))
    table = RunTable(Store(), job.output)

    keys = [f"day-0/a.zip#{name}" for name in colours]
    rows = [{"id": id_of(key), "key": key, "shard": "day-0/a.zip"} for key in keys]
    source: Any = job.input
    found = fetch(Store(), source, rows, table.parts)
    assert not found.missing
    for row, colour in zip(rows, colours.values(), strict=True):
        image = Image.open(io.BytesIO(found.by_id[row["id"]].thumbnail or b""))
        assert [round(value / 255) for value in image.getpixel((5, 5))] == [value // 255 for value in colour]  # type: ignore[union-attr]

    assert [folder_of("zip", row["shard"], row["key"]) for row in rows] == ["day-0/x/cat", "day-0/x/dog", "day-0"]
    assert shard_folder("zip", "day-0/a.zip") == "day-0/a.zip"

    (archive / "day-0" / "a.zip").write_bytes(zip_file({"x/cat/red.jpg": jpeg(colour=RED)}))
    assert fetch(Store(), source, rows, table.parts).missing == {"changed": 3}


@pytest.mark.parametrize(
    ("keys", "prefixes"), [("shard#path", ["day/x"]), ("shard#row", ["day"]), ("path", ["day/a.zip#x"])]
)
def test_the_form_of_keys_alone_tells_where_an_image_lies(
    keys: Any, prefixes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(READERS, "zip", ENTRY._replace(keys=keys))
    counted = Prefixes("zip")
    counted.add(pa.chunked_array([["day/a.zip#x/1.png"]]), "day/a.zip", np.array([True]))
    assert counted.counts() == [(name, 1, 1) for name in prefixes]


def test_every_kind_that_a_config_may_name_has_a_reader() -> None:
    kinds = get_args(get_args(Input)[0])
    assert {kind.model_fields["kind"].default for kind in kinds} == READERS.keys() - {"zip"}
    assert all(kind.suffixes and all(one == one.lower() for one in kind.suffixes) for kind in kinds)
    assert all("suffixes" not in kind.model_fields for kind in (*kinds, ZipInput))


def test_settings_need_no_reader() -> None:
    code = "import gradosr.config, sys; sys.exit(bool({'torch', 'pyarrow', 'gradosr.archive'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
