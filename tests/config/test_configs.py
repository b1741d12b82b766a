"""Every config in configs/ is true; tests/test_docs.py holds those of README and docs/."""

import re
from pathlib import Path

import pytest
from gradosr.jobs.cli import run
from tiny import CLASSES, picture

from gradosr.config import FitJob, OsrProtocol, ScoreJob, ScreenJob, load_job
from gradosr.errors import ConfigError
from gradosr.results.folder import RunFolder
from gradosr.store import Store

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_loads(path: Path) -> None:
    load_job(model_of(path.stem), str(path))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_field_that_a_config_leaves_to_its_reader_is_one(path: Path, tmp_path: Path) -> None:
    text, offered = re.subn(r"^# (?=\w+: )", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert offered == (2 if path.name == "screen-nightly.yaml" else 0)
    (tmp_path / path.name).write_text(text, encoding="utf-8")
    load_job(model_of(path.stem), str(tmp_path / path.name))


def model_of(name: str) -> type[FitJob | ScoreJob | OsrProtocol]:
    if name.startswith("evaluate"):
        return OsrProtocol
    return FitJob if "fit" in name else ScreenJob if "screen" in name else ScoreJob


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # Ray leaves sockets and log files to the collector
def test_the_smoke_configs_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for i in range(90):
        for folder in ("known", "archive")[: 1 + (i < 12)]:
            place = tmp_path / folder / CLASSES[i % 3]
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{i:03}.png").write_bytes(picture(i))
    assert run(["fit", str(ROOT / "configs" / "smoke-fit.yaml")]) == 0
    assert run(["score", str(ROOT / "configs" / "smoke-score.yaml")]) == 0
    table, finished = RunFolder(Store(), str(tmp_path / "results")).table(["key", "status"])
    assert (len(table), finished, set(table["status"].to_pylist())) == (12, True, {"ok"})


def test_set_changes_a_nested_field() -> None:
    job = load_job(ScoreJob, str(ROOT / "configs" / "score-tar.yaml"), ["ray.address=local", "batch_size=7"])
    assert (job.ray.address, job.batch_size) == ("local", 7)
    with pytest.raises(ConfigError, match="not a section"):
        load_job(ScoreJob, str(ROOT / "configs" / "score-tar.yaml"), ["batch_size.x=1"])
