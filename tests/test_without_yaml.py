"""The way from a folder of images to an audit without a config, configs to start from, and helpful refusals."""

import io
import json
import shlex
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import save_file
from test_jobs import fit_document, gradosr, write
from tiny import ARCH, CLASSES, TRANSFORM, labelled_tar, make_bundle, picture
from tiny_net import tiny
from torchvision import models

from gradosr.config import FitJob, ScoreJob, load_job
from gradosr.store import Store

SET = ("--set", f"classifier.transform={json.dumps(TRANSFORM.model_dump(mode='json'))}")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with photographs in class folders and weights."""
    for seed in range(120):
        place = tmp_path / "photos" / CLASSES[seed % 3] / f"{seed:03}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(picture(seed))
    torch.manual_seed(0)
    save_file(tiny(3).state_dict(), tmp_path / "w.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_from_a_folder_to_a_bundle_by_flags(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fit", "--arch", ARCH, "--weights", "w.safetensors", "--images", "photos", "--bundle", "b", *SET]
    code, out, err = gradosr(capsys, *words, "--set", "classifier.args={num_classes: 3}", "--json")
    assert code == 0, err
    assert "classes: cat, dog, ship: the folders of photos, in the order of their names\n" in err
    facts = json.loads(out)
    assert (facts["classes"], facts["images"]["training"]) == (list(CLASSES), 0)
    assert facts["images"]["fitting"] + facts["images"]["calibration"] == 120
    assert sum(one["images"] for one in facts["accuracy_by_class"].values()) == 120
    assert f"score it with --trust {ARCH}" in err
    code, _, err = gradosr(capsys, *words)
    assert (code, err.splitlines()[-1]) == (
        2, f"gradosr: {here}/b: a bundle is there already; name another folder, or replace it with --force",
    )  # fmt: skip
    assert gradosr(capsys, *words, "--set", "classifier.args={num_classes: 3}", "--force")[0] == 0
    code, out, err = gradosr(capsys, "score", "b", "photos", "--out", "r", "--trust", ARCH, "--dry-run", "--json")
    assert code == 0, err
    assert json.loads(out)["fingerprint"]["input"] == {"kind": "images", "uri": f"{here}/photos", "label_names": None}


def test_flags_change_a_config_and_the_whole_is_printed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write(here / "fit.yaml", fit_document(here))
    words = ["fit", config, "--classes", "a, b,c", "--held-out", "0.4", "--set", "seed=3", "--print-config"]
    code, out, err = gradosr(capsys, *words)
    assert (code, err) == (0, "")
    (here / "again.yaml").write_text(out)
    job = load_job(FitJob, str(here / "again.yaml"))
    assert (job.classifier.classes, job.held_out, job.seed) == (("a", "b", "c"), 0.4, 3)
    assert job == load_job(
        FitJob, str(config), ["classifier.classes=[a,b,c]", "held_out=0.4", "seed=3"]
    )  # fmt: skip
    make_bundle(Store(), "b")
    code, out, _ = gradosr(capsys, "score", "b", "photos", "--out", "r", "--workers", "3", "--print-config")
    (here / "score.yaml").write_text(out)
    job = load_job(ScoreJob, "score.yaml")
    assert (job.workers, job.features, job.input.kind, code) == (3, "unknown", "images", 0)
    assert gradosr(capsys, "score", "score.yaml", "--print-config")[1] == out
    assert not (here / "r").exists()


@pytest.mark.parametrize("kind", ["tar", "parquet", "images"])
def test_the_kind_of_images_is_found_by_looking(kind: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_bundle(Store(), "b")
    if kind == "tar":
        Store().write("there/0.tar", labelled_tar(0, 3))
    elif kind == "parquet":
        body = io.BytesIO()
        pq.write_table(pa.table({"image": [picture(0)]}), body)
        Store().write("there/0.parquet", body.getvalue())
    place = "photos" if kind == "images" else "there"
    code, out, err = gradosr(capsys, "score", "b", place, "--out", "r", "--print-config")
    assert code == 0, err
    assert yaml.safe_load(out)["input"]["kind"] == kind


WRONG = {
    "scroe x.yaml": "No such command 'scroe'. Did you mean score?",
    "help": "No such command 'help'. Did you mean --help?",
    "score b new.zip --out r": "new.zip: by its name no image, tar or Parquet file",
    "score b photos --out ''": "Invalid value for '--out': empty; name a path or a URI",
    "score b '' --out r": "Invalid value for '[IMAGES]': empty; name a path or a URI",
    "audit b --out ''": "Invalid value for '--out': empty; name a path or a URI",
    "score b photos --out r --set 'output=\"\"'": "output: empty; name a path or a URI",
    "score b s3:/bucket/x --out r": "s3:/bucket/x: did you mean s3://bucket/x?",
    "audit s3:///x": "s3:///x/run.json: names no object: s3://BUCKET/KEY",
    "score b s3:// --out r": "s3://: names no bucket: s3://BUCKET/KEY",
    "fit photos": "photos: a folder, where a config file is expected; `gradosr init` writes one",
    "fit --arch resnet18 --weights w.safetensors --images photos --bundle x": (
        "classifier.arch: resnet18: name its library as well, as in torchvision:resnet18"
    ),
    "fit --arch torchvision:resnet18 --weights w.safetensors --images photos/cat --bundle x": (
        "photos/cat has no two folders of classes, by which images are labelled"
    ),
    "fit --arch torchvision:resnet18 --weights lfs.pt --images photos --bundle x": (
        "lfs.pt: a pointer of Git LFS instead of the weights; `git lfs pull` fetches them"
    ),
    "fit --arch torchvision:resnet18 --weights w.safetensors --images photos --bundle fit.yaml": (
        "fit.yaml/fit.json: a file stands where a folder is needed"
    ),
    "score b photos --out r": f"say so: --trust {ARCH}, or `trust: [{ARCH}]` in a config",
    f"explain b photos --set trust=[{ARCH}]": "photos: a folder stands where a file is needed",
    "pack photos photos": "photos: holds objects already",
    "frobnicate": "No such command 'frobnicate'. Commands: init, fit, check",
    "score fit.yaml": "fit.yaml: this is a fit config: `gradosr fit fit.yaml`",
    "fit score.yaml": "score.yaml: this is a score config: `gradosr score score.yaml`",
    "score screen.yaml": "screen.yaml: this is a screen config: `gradosr screen screen.yaml`",
    "fit osr.yaml": "osr.yaml: this is a protocol config: `gradosr evaluate --protocol osr osr.yaml`",
    "score b": "b: no config file, and as a bundle it needs IMAGES and --out: gradosr score CONFIG, or",
    "score b photos": "b: no config file, and as a bundle it needs --out",
    "score b nowhere --out r": "nowhere",
    "score score.yaml photos": "score.yaml: a config says what it scores; change that with --set input.uri=photos",
    "score score.yaml --sett a": "No such option '--sett'",
    "fit": "name a config file, or give --arch and --images and --bundle as well",
    "fit --weights w.safetensors --images photos": "name a config file, or give --arch and --bundle as well",
    "fit --arch torchvision:resnet18 --images photos --bundle x": "classifier.weights or a train section is required",
    "fit --images photos --set seed=1 --bundle x": "gradosr: classifier.arch: required",
    "fit fit.yaml --held-out 2": "held_out: expected a number up to 1 or a text, found 2.0",
    "fit fit.yaml --set train={} --held-out 1": "held_out: 1 leaves no image to train on",
    "init fit --out fit.yaml": "fit.yaml: is there already",
    "init score nowhere": "nowhere",
}


@pytest.mark.parametrize("command", WRONG)
def test_a_mistake_on_the_command_line_is_told(command: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(here / "fit.yaml", fit_document(here))
    score = {"bundle": "b", "input": {"kind": "images", "uri": "photos"}, "output": "r"}
    write(here / "score.yaml", score)
    write(here / "screen.yaml", {**score, "gates": {"bad_images": 1}})
    write(here / "osr.yaml", {"tasks": [], "test": {}})
    (here / "new.zip").write_bytes(b"PK")
    (here / "lfs.pt").write_text("version https://git-lfs.github.com/spec/v1\nsize 46830571\n")
    if command in ("score b photos --out r", f"explain b photos --set trust=[{ARCH}]"):
        make_bundle(Store(), "b")
    code, out, err = gradosr(capsys, *shlex.split(command))
    assert (code in (2, 4), out) == (True, "")
    assert WRONG[command] in " ".join(err.split())
    assert "Traceback" not in err
    assert not (here / "r").exists()
    assert not (here / "run.json").exists()


# --- init ---


def test_init_writes_a_fit_config_from_what_it_sees(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "w.safetensors").unlink()
    torch.save({"state_dict": models.resnet18(num_classes=3).state_dict()}, here / "best.pt")
    code, out, err = gradosr(capsys, "init")
    assert (code, out) == (0, "fit.yaml\n"), err
    text = (here / "fit.yaml").read_text()
    assert text.startswith("# yaml-language-server: $schema=fit.schema.json\n")
    assert json.loads((here / "fit.schema.json").read_text())["title"] == "FitJob"
    job = load_job(FitJob, "fit.yaml")
    assert (job.classifier.arch, job.classifier.classes) == ("torchvision:resnet18", CLASSES)
    assert (job.input.uri, job.held_out, job.classifier.weights) == (f"{here}/photos", 1, f"{here}/best.pt")
    assert "weights: best.pt" in text
    assert "# 3 classes" in text
    shutil.rmtree(here / "photos" / "dog")
    assert gradosr(capsys, "init", "fit", "photos", "best.pt", "--force")[0] == 0
    assert "the weights have 3 classes, and there are 2 here" in (here / "fit.yaml").read_text()


@pytest.mark.parametrize("kind", ["score", "screen"])
def test_init_writes_configs_that_serve_a_bundle(kind: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_bundle(Store(), "b")
    Store().write("archive/0.tar", labelled_tar(0, 3))
    assert gradosr(capsys, "init", kind, "b", "archive") == (0, f"{kind}.yaml\n", "")
    text = (here / f"{kind}.yaml").read_text()
    assert "# labels in .cls members" in text
    code, out, err = gradosr(capsys, "check", f"{kind}.yaml", "--json")
    assert code == 0, err
    assert json.loads(out)["classes"] == list(CLASSES)
    assert ScoreJob.model_validate(
        {key: value for key, value in yaml.safe_load(text).items() if key in ScoreJob.model_fields}
    ).trust == (ARCH,)


def test_init_names_the_columns_of_parquet(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    features = {"info": {"features": {"fine_label": {"names": ["a: b", "c"]}}}}
    images = pa.array([{"bytes": picture(0), "path": "x"}])
    table = pa.table({"img": images, "fine_label": [0], "split\n": ["x"]})
    body = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), body)
    Store().write("set/0.parquet", body.getvalue())
    assert gradosr(capsys, "init", "fit", "set")[0] == 0
    job = load_job(FitJob, "fit.yaml")
    assert (job.input.image_column, job.input.label_column) == ("img", "fine_label")
    assert job.classifier.classes == job.input.label_names == ("a: b", "c")


def test_init_without_anything_still_writes_a_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for kind in ("fit", "score", "screen"):
        assert gradosr(capsys, "init", kind) == (0, f"{kind}.yaml\n", "")
        assert "FILL IN" in (tmp_path / f"{kind}.yaml").read_text()
        yaml.safe_load((tmp_path / f"{kind}.yaml").read_text())
