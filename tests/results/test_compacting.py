"""A run's table in few files: the same rows, verified, and nothing of the run touched."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from gradosr.jobs.cli import run
from hostile import tar
from tiny import local_job, picture, run_here, write_archive

from gradosr.errors import ConfigError, RunFailed
from gradosr.results import compacting
from gradosr.results.compacting import compact, parse_size
from gradosr.results.folder import RunFolder
from gradosr.store import Store


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 5 parts and 30 rows, one of which has no score."""
    folder = tmp_path_factory.mktemp("run")
    write_archive(Store(), f"{folder}/archive", shards=4)
    members = [(f"{seed}.png", picture(seed)) for seed in range(24, 29)]
    Store().write(f"{folder}/archive/bad.tar", tar([*members, ("bad.png", b"no image")]))
    run_here(local_job(folder, features="unknown", representation="all"))
    return folder / "results"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("size", "rows_at_once", "files"), [(2**30, 10_000, 1), (1, 7, 5)])
def test_the_rows_are_those_of_the_parts(
    size: int, rows_at_once: int, files: int, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compacting, "ROW_GROUP", rows_at_once)
    before = contents(results)
    manifest = compact(Store(), str(results), f"{tmp_path}/out", size)
    assert contents(results) == before
    names = json.loads((results / "_SUCCESS").read_text())["parts"]
    expected = pa.concat_tables(pq.read_table(results / "parts" / f"{name}.parquet") for name in names)
    assert pa.dataset.dataset(tmp_path / "out").to_table().equals(expected.combine_chunks())
    assert len(manifest["files"]) == files
    assert manifest == json.loads((tmp_path / "out" / "_manifest.json").read_text())
    assert manifest["fingerprint"] == RunFolder(Store(), str(results)).fingerprint()
    assert (manifest["parts"], manifest["rows"]) == (names, 30)
    footers = [pq.read_metadata(path).metadata for path in sorted((tmp_path / "out").glob("*.parquet"))]
    named = [name for footer in footers for name in json.loads(footer[b"gradosr.parts"])]
    assert list(dict.fromkeys(named)) == names
    assert all(json.loads(footer[b"gradosr.fingerprint"]) == manifest["fingerprint"] for footer in footers)


class Forgetful(Store):
    """Keeps another value than it was given."""

    def write(self, uri: str, body: object, *, if_absent: bool = False) -> bool:
        if uri.endswith("00000.parquet"):
            table = pq.ParquetFile(body, pre_buffer=False).read(use_threads=False)
            place = table.column_names.index("energy")
            pq.write_table(table.set_column(place, table.field(place), pa.nulls(30, pa.float32())), uri)
            return True
        return super().write(uri, body, if_absent=if_absent)  # type: ignore[arg-type]


def test_what_is_read_back_must_be_what_was_written(results: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(RunFailed, match="30 of 30 rows read back, columns that differ: energy; the run itself"):
        compact(Forgetful(), str(results), f"{tmp_path}/out", 2**30)
    assert not (tmp_path / "out" / "_manifest.json").exists()


def test_a_key_that_comes_twice_is_told(tmp_path: Path) -> None:
    write_archive(Store(), f"{tmp_path}/archive", shards=1)
    run_here(local_job(tmp_path))
    success = tmp_path / "results" / "_SUCCESS"
    document = json.loads(success.read_text())
    success.write_text(json.dumps(document | {"parts": 2 * document["parts"]}))
    assert run(["compact", f"{tmp_path}/results", "--out", f"{tmp_path}/out"]) == 4
    assert not (tmp_path / "out" / "_manifest.json").exists()


def test_the_command_says_what_it_did(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["compact", str(results), "--out", f"{tmp_path}/out"]
    assert run(arguments) == 0
    assert capsys.readouterr().out == f"30 rows of 5 parts in 1 file: {tmp_path}/out\n"
    assert run(arguments) == 4
    assert "holds objects already" in capsys.readouterr().err
    assert run(["compact", str(tmp_path), "--out", f"{tmp_path}/other"]) == 4
    assert "no results there" in capsys.readouterr().err
    assert run([*arguments, "--size", "many"]) == 2


def test_an_unfinished_run_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_archive(Store(), f"{tmp_path}/archive", shards=2)
    run_here(local_job(tmp_path), only=1)
    assert run(["compact", f"{tmp_path}/results", "--out", f"{tmp_path}/out"]) == 4
    assert "not a finished run (no _SUCCESS)" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "size"), [("7", 7), ("256MB", 256 * 10**6), ("1 GiB", 2**30), ("3kb", 3000)])
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "0", "1.5GB", "2 apples"])
def test_a_size_that_is_none_is_one_clear_line(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a number of bytes, KB, MB or GB"):
        parse_size(text)
