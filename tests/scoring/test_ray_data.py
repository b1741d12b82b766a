"""The callable class for Ray Data, called as Ray Data calls it; on a real Ray it is in test_driver.py."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from tiny import ARCH, local_job, picture, rows_of, run_here, write_archive

from gradosr.errors import BundleError, ConfigError
from gradosr.results.part import schema
from gradosr.scoring.ray_data import BatchScorer
from gradosr.store import Store

SCORES = [name for name in schema().names if name not in ("key", "source", "shard", "row", "label")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures scored by a run."""
    folder = tmp_path_factory.mktemp("run")
    write_archive(Store(), f"{folder}/archive", shards=2)
    run_here(local_job(folder))
    return folder


@pytest.fixture(scope="module")
def scorer(folder: Path) -> BatchScorer:
    return BatchScorer(str(folder / "bundle"), trust=(ARCH,), threads=2)


def objects(*values: object) -> np.ndarray:
    found = np.empty(len(values), object)
    found[:] = values
    return found


def pixels(seed: int) -> np.ndarray:
    array = np.asarray(Image.open(io.BytesIO(picture(seed))))
    array.flags.writeable = False  # as Ray's are
    return array


FORMS = {
    "bytes": lambda: objects(*(picture(seed) for seed in range(12))),
    "struct": lambda: objects(*({"bytes": picture(seed), "path": f"{seed}.png"} for seed in range(12))),
    "array": lambda: np.stack([pixels(seed) for seed in range(12)]),
    "arrays": lambda: objects(*(pixels(seed) for seed in range(12))),
}


@pytest.mark.parametrize("form", FORMS)
def test_scores_are_those_of_a_run(form: str, folder: Path, scorer: BatchScorer) -> None:
    out = scorer({"number": np.arange(12), "image": FORMS[form]()})
    columns = ("key", "unknown_score", "p_value", "confidence", "predicted_class", "is_unknown", "width")
    expected = [row for _, row in sorted(rows_of(folder / "results", columns).items())]
    assert list(out) == ["number", *(["source"] if form == "struct" else []), *SCORES]
    assert out["number"].tolist() == list(range(12))
    for place, name in enumerate(columns[1:]):
        values = [row[place] for row in expected]
        rounded = pytest.approx(values, rel=1e-4, abs=1e-5) if out[name].dtype == np.float32 else values
        assert out[name].tolist() == rounded
    if form == "struct":
        assert out["source"].tolist() == [f"{seed}.png" for seed in range(12)]


def test_a_bad_image_is_a_row_with_a_reason(scorer: BatchScorer) -> None:
    good, cut = picture(1), picture(2)[:-40]
    images = [good, None, b"", cut, b"no image", 7, np.zeros((4, 4)), np.zeros((0, 4, 3), np.uint8), good]
    out = scorer({"image": objects(*images)})
    statuses = ["ok", "empty", "empty", "truncated", "not_an_image", "unsupported", "unsupported", "empty", "ok"]
    assert out["status"].tolist() == statuses
    assert out["error"][5] == "int: neither encoded bytes nor an array of uint8"
    assert out["error"][6] == "an array of float64 [4, 4]; expected uint8 [height, width, 3]"
    scored = [status == "ok" for status in statuses]
    for name in ("unknown_score", "predicted_class", "is_unknown"):
        assert [value is not None for value in out[name]] == scored


def test_arrow_reads_the_types_of_a_part(scorer: BatchScorer) -> None:
    part = {field.name: field.type for field in schema() if field.name != "error"}
    whole, holed = (scorer({"image": objects(picture(1), last)}) for last in (picture(2), b""))
    for out in (whole, holed):
        found = {name: pa.array(values).type for name, values in out.items() if name in part}
        assert found == {name: part[name] for name in found}
    assert pa.array(holed["predicted_index"]).null_count == 1


@pytest.mark.parametrize("images", [(picture(1), picture(2)), (b"", None)], ids=["scored", "bad"])
def test_a_table_keeps_the_types_of_a_part_where_all_is_null(
    images: tuple[bytes | None, ...], scorer: BatchScorer
) -> None:
    structs = [{"bytes": image, "path": "a.png"} for image in images]
    out = scorer(pa.table({"image": structs, "number": pa.array([1, 2], pa.uint8())}))
    part = {field.name: field.type for field in schema()}
    assert out.column_names == ["number", "source", *SCORES]
    assert {field.name: field.type for field in out.schema} == {
        name: part.get(name, pa.uint8()) for name in out.column_names
    }
    assert out["error"].null_count == (2 if images[0] else 0)
    assert out["unknown_score"].null_count == (0 if images[0] else 2)


def test_a_table_has_the_scores_of_numpy_batches(scorer: BatchScorer) -> None:
    images = [picture(1), b"no image", picture(2)]
    table, batch = scorer(pa.table({"image": images})), scorer({"image": objects(*images)})
    assert {name: table[name].to_pylist() for name in SCORES} == {name: batch[name].tolist() for name in SCORES}


def test_columns_that_do_not_fit_are_one_clear_line(folder: Path, scorer: BatchScorer) -> None:
    with pytest.raises(ConfigError, match=r"no column 'image' \(columns: jpg\); set image_column"):
        scorer({"jpg": objects(picture(1))})
    with pytest.raises(ConfigError, match=r"no column 'image' \(columns: jpg\); set image_column"):
        scorer(pa.table({"jpg": [picture(1)]}))
    with pytest.raises(ConfigError, match="the scores use the column names status, width"):
        scorer({"image": objects(picture(1)), "width": np.ones(1), "status": np.ones(1)})
    with pytest.raises(BundleError, match="no bundle there"):
        BatchScorer(str(folder / "archive"))
