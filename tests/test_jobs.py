"""The command line: what users type, what they get wrong, and what they are told."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fault_proxy import FaultProxy
from gradosr.jobs.cli import COMMANDS, cli, run
from hostile import tar
from made_runs import calibration, rows, write_run
from safetensors.torch import save_file
from tiny import (
    ARCH,
    CLASSES,
    TRANSFORM,
    labelled_tar,
    local_job,
    make_bundle,
    picture,
    plain,
    rows_of,
    run_here,
    write_archive,
)
from tiny_net import tiny

from gradosr.config import S3Settings
from gradosr.errors import ConfigError, GradosrError, InputError, RunActive, RunFailed
from gradosr.lab.benchmark.audit import write_results
from gradosr.lab.seaweedfs import SeaweedFS
from gradosr.store import Store


def gradosr(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of a command run in this process."""
    capsys.readouterr()
    code = run([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def write(path: Path, document: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.fixture
def score_yaml(tmp_path: Path) -> Path:
    """A score job that would run."""
    write_archive(Store(), f"{tmp_path}/archive", shards=2)
    make_bundle(Store(), f"{tmp_path}/bundle")
    return write(
        tmp_path / "score.yaml",
        {
            "bundle": f"{tmp_path}/bundle",
            "input": {"kind": "tar", "uri": f"{tmp_path}/archive/"},
            "output": f"{tmp_path}/results",
            "trust": [ARCH],
            "workers": 1,
        },
    )


def fit_document(folder: Path) -> dict[str, Any]:
    """A fit job that would run, on 120 labelled pictures."""
    Store().write(f"{folder}/known/0.tar", labelled_tar(0, 120))
    torch.manual_seed(0)
    save_file(tiny(3).state_dict(), folder / "weights.safetensors")
    return {
        "classifier": {
            "arch": ARCH,
            "args": {"num_classes": 3},
            "weights": f"{folder}/weights.safetensors",
            "classes": list(CLASSES),
            "transform": TRANSFORM.model_dump(mode="json"),
        },
        "input": {"kind": "tar", "uri": f"{folder}/known/"},
        "held_out": 0.7,
        "detector": {"kind": "one_class"},
        "bundle": f"{folder}/bundle",
    }


# --- Mistakes in a score job: one line, the exit code of design, no results folder ---

MISTAKES: dict[str, tuple[list[str], int, str]] = {
    "unknown key": (["bundel=x"], 2, "bundel: unknown key; did you mean bundle? (valid: batch_size, bundle"),
    "wrong type": (["batch_size=many"], 2, "batch_size: expected a whole number, found 'many'"),
    "unknown kind": (
        ["input.kind=zip"],
        2,
        "input.kind: expected 'parquet', 'tar', 'images' or 'results', found 'zip'",
    ),
    "workers": (
        ["workers=0"],
        2,
        "workers: expected a number above 0, 'auto' or a section of min, max, cpus, gpus, found 0",
    ),
    "no separator": (["batch_size"], 2, "--set batch_size: expected key=value"),
    "no bundle": (["bundle=nowhere"], 4, "nowhere: no bundle there"),
    "empty prefix": (["input.uri=empty/"], 4, "empty"),
    "missing archive": (["input.uri=missing/"], 4, "missing"),
    "untrusted factory": (["trust=[]"], 2, "`trust: [tiny_net:tiny]`"),
    "label names": (["input.label_names=nowhere.json"], 4, "nowhere.json"),
    "unwritable": (["output=score.yaml/results"], 4, "score.yaml"),
    "scheme": (["output=az://bucket/x"], 2, "az://"),
    "share of 1": (["max_bad_images=1.0"], 2, "max_bad_images: expected a whole number or a number below 1, found 1.0"),
    "below none": (["max_bad_shards=-1"], 2, "max_bad_shards: expected a number from 0 on"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_score_job_is_one_line(
    mistake: str, score_yaml: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(score_yaml.parent)
    (score_yaml.parent / "empty").mkdir()
    overrides, code, message = MISTAKES[mistake]
    arguments = [part for override in overrides for part in ("--set", override)]
    found, out, err = gradosr(capsys, "score", score_yaml, *arguments)
    assert (found, out) == (code, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert "Traceback" not in err
    assert not (score_yaml.parent / "results").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "score.yaml: no such file"),
        ("a: [", "not valid YAML"),
        ("- a\n- b\n", "expected a mapping"),
        ("", "bundle: required"),
        ("bundle: !!python/object/apply:os.system [id]\n", "not valid YAML"),
    ],
)
def test_an_unreadable_config_is_told(
    text: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "score.yaml"
    if text is not None:
        path.write_text(text)
    code, _, err = gradosr(capsys, "score", path)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_a_json_log_holds_errors_too(score_yaml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    json_log = ["--log-format", "json"]
    for arguments, code, messages in (
        (
            [score_yaml, "--set", "bundel=1", "--set", "batch_size=no"],
            2,
            ["bundel: unknown key", "batch_size: expected"],
        ),
        ([score_yaml, "--set", "bundle=no\u202ewhere"], 4, ["no\u202ewhere: no bundle there"]),
        ([score_yaml, "--log-interval", "soon"], 2, ["'soon' is not a valid float"]),
    ):
        found, out, err = gradosr(capsys, "score", *json_log, *arguments)
        assert err.isascii()
        events = [json.loads(line) for line in err.splitlines()]
        assert (found, out, len(events)) == (code, "", len(messages))
        for event, message in zip(sorted(events, key=lambda event: -len(event["message"])), messages, strict=True):
            assert message in event["message"]
            assert (event["event"], event["level"], event["exit_code"]) == ("error", "error", code)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("from gradosr.jobs.cli import run; sys.exit(run(['score', 'job.yaml']))", "gradosr runs on Linux and macOS;"),
        ("from gradosr.store import Store; Store().read('a')", "ConfigError: local files need the locks of Linux"),
    ],
)
def test_a_platform_without_the_locks_of_unix_is_told(code: str, told: str) -> None:
    without = "import sys; sys.modules['fcntl'] = None; "  # as on Windows, where there is no such module
    ran = subprocess.run(
        [sys.executable, "-c", without + code], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode
    last = ran.stderr.splitlines()[-1]
    assert told in last
    assert "WSL 2" in last
    assert len(ran.stderr.splitlines()) == 1 or "jobs" not in code


def test_what_this_machine_lacks_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "huge.yaml").touch()
    os.truncate(tmp_path / "huge.yaml", 1 << 43)  # a hole, larger than any memory
    code, out, err = gradosr(capsys, "score", tmp_path / "huge.yaml")
    assert (code, out) == (1, "")
    assert err.startswith("gradosr: this machine is at fault, not the data: ")
    assert err.count("\n") == 1


def test_usage_errors_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert gradosr(capsys, "score")[0] == 2
    assert gradosr(capsys, "scroe")[0] == 2
    assert gradosr(capsys, "evaluate", "x", "--sett")[0] == 2


def test_a_folder_of_another_fingerprint_is_refused(score_yaml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_here(local_job(score_yaml.parent))
    code, _, err = gradosr(capsys, "score", score_yaml, "--set", "max_pixels=77")
    assert code == 2
    assert "max_pixels was 178956970, is 77" in err
    assert len(err.splitlines()) == 1


def test_a_bundle_of_another_version_is_refused(score_yaml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = score_yaml.parent / "bundle" / "bundle.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 99}))
    code, _, err = gradosr(capsys, "score", score_yaml)
    assert (code, len(err.splitlines())) == (4, 1)
    assert "bundle version 99; this gradosr reads version 1" in err


# --- The store ---


@pytest.fixture
def s3_overrides(s3_settings: S3Settings, bucket: str, score_yaml: Path) -> list[str]:
    """--set arguments that put archive and output into the bucket."""
    write_archive(Store(s3_settings), f"{bucket}/archive", shards=2)
    values = {
        "store.endpoint_url": s3_settings.endpoint_url,
        "store.addressing_style": "path",
        "input.uri": f"{bucket}/archive/",
        "output": f"{bucket}/results/",
    }
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


@pytest.mark.parametrize(
    ("override", "code", "message"),
    [
        ("input.uri=s3://no-such-bucket-here/x/", 4, "no-such-bucket-here"),
        ("output=s3://no-such-bucket-here/x/", 4, "no-such-bucket-here"),
        ("input.uri=s3://{bucket}/nothing/", 4, "nothing"),
        ("store.endpoint_url=http://127.0.0.1:9", 4, "127.0.0.1:9"),
    ],
)
def test_a_mistake_about_the_store_is_told(
    override: str, code: int, message: str, score_yaml: Path, s3_overrides: list[str], bucket: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    override = override.replace("{bucket}", bucket.removeprefix("s3://"))
    found, out, err = gradosr(capsys, "score", score_yaml, *s3_overrides, "--set", override)
    assert (found, out) == (code, "")
    assert message in err
    assert "Traceback" not in err
    assert not (score_yaml.parent / "results").exists()


def test_wrong_credentials_are_told(
    score_yaml: Path, s3_overrides: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    code, _, err = gradosr(capsys, "score", score_yaml, *s3_overrides)
    assert code == 4
    assert "AWS_ACCESS_KEY_ID" in err
    assert "wrong" not in err
    assert "Traceback" not in err


# --- Mistakes in a fit job ---

FIT_MISTAKES: dict[str, tuple[dict[str, Any], int, str]] = {
    "fetching argument": ({"classifier.args": {"num_classes": 3, "pretrained": True}}, 2, "pretrained would fetch"),
    "fetching name": ({"classifier.arch": "timm:hf-hub:someone/net"}, 2, "hf-hub:someone/net would fetch"),
    "unknown architecture": ({"classifier.arch": "torchvision:resnet19"}, 2, "did you mean resnet1"),
    "no factory": ({"classifier.arch": "tiny_net:huge"}, 2, "tiny_net:huge: cannot be imported"),
    "not a module": ({"classifier.arch": "tiny_net:not_a_module"}, 4, "returns str; expected a torch.nn.Module"),
    "cut off": ({"classifier.arch": "tiny_net:cut_off"}, 4, "logits are cut off from its parameters"),
    "class count": ({"classifier.classes": ["cat", "dog"]}, 4, "3 logits, but 2 classes are named"),
    "missing weights": ({"classifier.weights": "nowhere.safetensors"}, 4, "nowhere.safetensors"),
    "unfit weights": ({"classifier.args": {"num_classes": 4}}, 4, "2 of another shape: head.weight (3, 64) instead of"),
    "no recipe": ({"detector": {"kind": "transfer"}}, 2, "transfer needs a train section"),
    "no weights": ({"classifier.weights": None}, 2, "classifier.weights or a train section is required"),
    "strange known": ({"known": ["bird", "cat", "dog"]}, 2, "bird not among the classifier's classes"),
    "objective": ({"detector": {"kind": "one_class", "objectives": ["n_hot:1"]}}, 2, "has 0 or 2 to 3 ones"),
    "no objective": ({"detector": {"kind": "one_class", "objectives": []}}, 2, "objectives: expected at least 1 in"),
    "dict": (
        {"classifier.arch": "tiny_net:keyed"}, 4,
        "the classifier returns a dict of logits, features; pick the logits by classifier.logits: logits",
    ),
    "no such entry": (
        {"classifier.arch": "tiny_net:keyed", "classifier.logits": "scores"}, 4,
        "classifier.logits: scores is none of the tensors that the classifier returns (dict of logits, features)",
    ),
    "entry of no type": ({"classifier.logits": True}, 2, "logits: expected a whole number or a text, found true"),
    "tuple in training": (
        {"classifier.arch": "tiny_net:auxiliary", "classifier.weights": None, "train": {"epochs": 1}}, 4,
        "the classifier returns a tuple of 0, 1; pick the logits by classifier.logits: 0",
    ),
    "one logit": (
        {"classifier.args": {"num_classes": 1}, "classifier.weights": None, "train": {"epochs": 1}}, 4,
        "the classifier gives logits (3, 1) for 3 images; expected one for each of at least two classes",
    ),
    "dropout": ({"classifier.arch": "tiny_net:dropping"}, 4, "returns different logits for the same images each time"),
    "mixed precision": (
        {"classifier.arch": "tiny_net:mixed"}, 4,
        "mixed precision: head.weight, head.bias of float64 and images of float32; call .float() on the classifier",
    ),
    "indifferent": (
        {"classifier.arch": "tiny_net:indifferent"}, 4,
        "known images: they lose confidence in no direction; check the classifier's weights and the images",
    ),
    "too few": ({"held_out": 0.1}, 4, "calibration images"),
    "no image": ({"input.uri": "nothing/"}, 4, "nothing"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", FIT_MISTAKES)
def test_a_mistake_in_a_fit_job_is_one_line(
    mistake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    changes, code, message = FIT_MISTAKES[mistake]
    document = fit_document(tmp_path)
    for path, value in changes.items():
        section, _, key = path.rpartition(".")
        (document[section] if section else document)[key] = value
    found, out, err = gradosr(capsys, "fit", write(tmp_path / "fit.yaml", document))
    assert found == code
    assert out == ""
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err
    assert not (tmp_path / "bundle" / "bundle.json").exists()


def test_weights_that_are_not_finite_are_named_before_the_images_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = fit_document(tmp_path)
    weights = tiny(3).state_dict()
    weights["body.3.weight"][0, 0, 0, 0] = torch.nan
    save_file(weights, tmp_path / "weights.safetensors")
    code, out, err = gradosr(capsys, "fit", write(tmp_path / "fit.yaml", document))
    assert (code, out) == (4, "")
    assert "body.3.weight holds values that are not finite" in err.splitlines()[-1]
    assert "images:" not in err


def test_weights_that_are_code_do_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = fit_document(tmp_path)

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    torch.save({"head.weight": Bomb()}, tmp_path / "bomb.pt")
    document["classifier"]["weights"] = str(tmp_path / "bomb.pt")
    code, _, err = gradosr(capsys, "fit", write(tmp_path / "fit.yaml", document))
    assert code == 4
    assert "bomb.pt: holds objects (posix.mkdir), which run code" in err
    assert not (tmp_path / "exploded").exists()


# --- The way through ---


def test_fit_with_given_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = gradosr(capsys, "fit", write(tmp_path / "fit.yaml", fit_document(tmp_path)), "--json")
    assert code == 0, err
    facts = json.loads(out)
    assert facts["classes"] == list(CLASSES)
    assert facts["images"]["training"] == 0
    assert facts["images"]["fitting"] + facts["images"]["calibration"] > 60
    manifest = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    assert manifest["provenance"]["weights"].endswith("weights.safetensors")
    assert {path.name for path in (tmp_path / "bundle").iterdir()} == {
        "bundle.json", "fit.json", "classifier.safetensors", "detector.safetensors", "calibration.safetensors",
        "signals.safetensors", "known.parquet",
    }  # fmt: skip


@pytest.mark.slow
def test_a_classifier_that_returns_more_than_logits_is_fitted_and_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """To the thresholds and rows of the same network that returns logits alone."""
    write_archive(Store(), f"{tmp_path}/archive", shards=1)
    document, found = fit_document(tmp_path), {}
    for arch, changes in (("tiny_net:tiny", {}), ("tiny_net:keyed", {"logits": "logits"})):
        bundle = f"{tmp_path}/{arch}"
        changed = document | {"classifier": document["classifier"] | {"arch": arch} | changes, "bundle": bundle}
        code, out, err = gradosr(capsys, "fit", write(tmp_path / "fit.yaml", changed), "--json")
        assert code == 0, err
        assert json.loads((Path(bundle) / "bundle.json").read_text()).get("logits") == changes.get("logits")
        run_here(local_job(tmp_path, bundle=bundle, trust=[arch], output=f"{bundle}/results"))
        scores = [score for (score,) in rows_of(Path(bundle) / "results").values()]
        found[arch] = [json.loads(out)["threshold"], *scores]
    assert len(found["tiny_net:tiny"]) == 7
    assert found["tiny_net:keyed"] == pytest.approx(found["tiny_net:tiny"], rel=1e-3, abs=1e-3)


def test_training_outputs_are_picked_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = fit_document(tmp_path)
    document["classifier"] |= {"arch": "tiny_net:auxiliary", "weights": None, "logits": 0}
    document |= {"train": {"epochs": 1}, "held_out": 0.5, "detector": {"kind": "transfer"}}
    code, _, err = gradosr(capsys, "fit", write(tmp_path / "fit.yaml", document))
    assert code == 0, err


def test_known_images_without_a_finite_logit_are_left_out_of_the_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = fit_document(tmp_path) | {"held_out": 0.9}
    document["classifier"]["arch"] = "tiny_net:bursting"
    whites = [(f"white{i}.{end}", data) for i in range(10) for end, data in (("png", plain()), ("cls", b"cat"))]
    Store().write(f"{tmp_path}/known/1.tar", tar(whites))
    code, out, err = gradosr(capsys, "fit", write(tmp_path / "fit.yaml", document), "--json")
    assert code == 0, err
    assert re.search(r"left out \d of \d\d images: a logit or a gradient norm is not a finite number", err)
    assert isinstance(json.loads(out)["threshold"], float)


@pytest.mark.parametrize("kind", ["one_class", "transfer"])
def test_fit_with_a_recipe(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = fit_document(tmp_path)
    del document["classifier"]["weights"]
    document |= {"train": {"epochs": 1, "flip": True, "crop_padding": 1}, "detector": {"kind": kind}, "held_out": 0.5}
    code, out, err = gradosr(capsys, "fit", write(tmp_path / "fit.yaml", document), "--json")
    assert code == 0, err
    assert json.loads(out)["images"]["training"] > 30
    assert ("pseudo-unknown" in err) == (kind == "transfer")


def test_held_out_by_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = [f"0.tar#{i:05}.png" for i in range(80)]
    (tmp_path / "held_out.json").write_text(json.dumps(keys))
    document = fit_document(tmp_path) | {"held_out": f"{tmp_path}/held_out.json"}
    code, out, _ = gradosr(capsys, "fit", write(tmp_path / "fit.yaml", document), "--json")
    assert code == 0
    images = json.loads(out)["images"]
    assert images["fitting"] + images["calibration"] == 80


def test_dry_run_touches_nothing(
    score_yaml: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradosr.run.estimate.SECONDS", 0.1)
    code, out, _ = gradosr(capsys, "score", score_yaml, "--dry-run", "--json", "--set", "price_per_hour=36")
    facts = json.loads(out)
    found = facts["estimate"]
    assert (found["images"], found["sample_images"], found["sample_shards"], found["workers"]) == (12, 12, 2, 1)
    assert found["seconds"] == pytest.approx(found["planning"] + 12 / found["images_per_second"])
    assert found["cost"] == pytest.approx(found["seconds"] / 100)
    assert code == 0
    assert (facts["shards"], facts["pending_shards"]) == (2, 2)
    assert facts["bytes"] == sum(path.stat().st_size for path in (score_yaml.parent / "archive").iterdir())
    assert not (score_yaml.parent / "results").exists()
    code, out, err = gradosr(capsys, "score", score_yaml, "--dry-run")
    assert "to be done   2 shards" in out
    assert "estimate     12 images" in out
    assert (
        "stored       128 bytes for each image" in out
    )  # the features of unknown images, by which an audit groups them
    assert "stored" not in gradosr(capsys, "score", score_yaml, "--dry-run", "--set", "features=none")[1]
    assert "scoring a sample" in err
    code, out, err = gradosr(capsys, "score", score_yaml, "--dry-run", "--set", "signals=all")
    assert f"stored       {2 * (3 + 64 + 8 + 2 * 7)} bytes for each image" in out
    code, out, err = gradosr(capsys, "score", score_yaml, "--dry-run", "--set", "precision=tf32", "--set", "device=cpu")
    assert (code, out) == (2, "")
    assert err.endswith("fit it with `precisions: [tf32]`, or score in float32\n")


def test_evaluate_counts_what_it_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_archive(Store(), f"{tmp_path}/archive")
    run_here(local_job(tmp_path))
    code, out, _ = gradosr(capsys, "evaluate", tmp_path / "results", "--known", "cat,dog", "--json")
    facts = json.loads(out)
    assert code == 0
    assert (facts["known"], facts["unknown"], facts["left_out"], facts["finished"]) == (16, 8, 0, True)
    assert set(facts["scores"]) == {"unknown score", "MSP", "max logit", "energy"}
    assert all(0 <= metrics["auroc"] <= 1 for metrics in facts["scores"].values())
    code, out, _ = gradosr(capsys, "evaluate", tmp_path / "results")
    assert code == 0
    assert "24 known and 0 unknown images" in out
    assert gradosr(capsys, "evaluate", tmp_path / "results", "--known", "bird")[0] == 2
    code, _, err = gradosr(capsys, "evaluate", tmp_path / "nowhere")
    assert code == 4
    assert "no results there" in err


def test_evaluate_says_when_a_run_is_not_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_archive(Store(), f"{tmp_path}/archive")
    run_here(local_job(tmp_path), only=2)
    code, out, err = gradosr(capsys, "evaluate", tmp_path / "results", "--json")
    assert code == 0
    assert json.loads(out)["known"] == 12
    assert "not finished" in err


def test_evaluate_without_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "a.png").write_bytes(picture(0))
    run_here(local_job(tmp_path, input={"kind": "images", "uri": f"{tmp_path}/archive"}))
    code, _, err = gradosr(capsys, "evaluate", tmp_path / "results")
    assert code == 4
    assert "none of 1 rows has a score and a label" in err


def test_evaluate_of_numbers_without_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = [{**row, "label": str(place % 3)} for place, row in enumerate(rows("s.tar", [0.1] * 6, calibration()))]
    uri = write_run(tmp_path / "results", {"p": made}, calibration())
    code, out, err = gradosr(capsys, "evaluate", uri)
    assert (code, out) == (4, "")
    assert " ".join(err.split()) == (
        f"gradosr: {uri}: the labels are numbers (0, 1, 2), the classes are names (cat, dog, ship); "
        "score with input.label_names, the names in the order of the numbers"
    )


def test_pack_keeps_bytes_and_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(5):
        folder = tmp_path / "images" / CLASSES[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"a.{i}.png").write_bytes(picture(i))
    target = tmp_path / "archive"
    code, out, _ = gradosr(
        capsys, "pack", tmp_path / "images", target, "--set", "images_per_shard=2", "--json"
    )  # fmt: skip
    assert code == 0
    assert json.loads(out) == {"images": 5, "shards": 3}
    _, summary = run_here(local_job(tmp_path))
    assert summary.counts["ok"] == 5
    code, out, _ = gradosr(capsys, "evaluate", tmp_path / "results", "--json")
    assert json.loads(out)["known"] == 5


# --- The command itself ---


def test_every_command_is_listed_and_has_few_flags(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = gradosr(capsys, "--help")
    assert code == 0
    for name in COMMANDS:
        assert f"  {name} " in out
        command = cli.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None
        # `schedule` says how a job is started, which no field of it can; `label` and `extend` have no job, and `label`
        # does two things; `audit` takes two files beside the run. `fit` and `score` can do without a config: their
        # flags are the fields without which no job is, and no more.
        most = {"schedule": 7, "label": 8, "extend": 8, "audit": 7, "fit": 11, "score": 11}.get(name, 6)
        assert len(command.params) <= most, f"{name}: a new knob is a config field"


@pytest.mark.parametrize(("error", "code"), [(ConfigError, 2), (InputError, 4), (RunActive, 7), (RunFailed, 1)])
def test_an_error_is_one_line_and_its_exit_code(
    error: type[GradosrError], code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: object) -> None:
        raise error("what happened")

    monkeypatch.setattr(cli, "main", fail)
    assert gradosr(capsys) == (code, "", "gradosr: what happened\n")


def test_help_needs_no_heavy_import() -> None:
    code = (
        "import sys; from gradosr.jobs.cli import run; run(['--help']); run(['score', '--help']);"
        "heavy = {'torch', 'ray', 'pyarrow', 'boto3', 'pydantic', 'numpy'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=60)


def test_a_config_is_refused_before_torch_is_imported(score_yaml: Path) -> None:
    code = (
        "import sys; from gradosr.jobs.cli import run;"
        f"assert run(['score', {str(score_yaml)!r}, '--set', 'bundel=1']) == 2;"
        f"assert run(['score', {str(score_yaml)!r}, '--set', 'bundle=nowhere']) == 4;"
        "assert not {'torch', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stderr=subprocess.DEVNULL, timeout=60)


@pytest.mark.slow
def test_score_by_subprocess_resumes_after_sigkill(tmp_path: Path) -> None:
    """The driver really dies; the same command finishes the run and touches no finished part."""
    write_archive(Store(), f"{tmp_path}/archive", shards=40, images=40)
    make_bundle(Store(), f"{tmp_path}/bundle")
    job = local_job(tmp_path, workers=1)
    document = job.model_dump(mode="json", exclude={"stores", "runtime_env"})
    config = write(tmp_path / "score.yaml", document)
    command = [sys.executable, "-m", "gradosr.jobs.cli", "score", str(config)]
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    parts = tmp_path / "results" / "parts"
    deadline = time.monotonic() + 120
    while not (parts.exists() and len(list(parts.glob("part-*"))) >= 3):
        assert first.poll() is None, "finished before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    first.kill()
    first.wait()
    time.sleep(1)
    before = {path.name: path.stat().st_mtime_ns for path in parts.glob("part-*")}
    assert 3 <= len(before) < 40
    second = subprocess.run([*command, "--json"], check=True, capture_output=True, text=True, timeout=150)
    summary = json.loads(second.stdout)
    assert summary["counts"]["rows"] == 1600
    assert summary["scored"] <= 40 - len(before)
    assert before.items() <= {path.name: path.stat().st_mtime_ns for path in parts.glob("part-*")}.items()


@pytest.mark.slow
def test_score_tells_too_many_bad_images_by_its_exit_code_and_logs_json_lines(tmp_path: Path) -> None:
    """In a process of its own, on a real Ray; the finished run asked again says the same."""
    write_archive(Store(), f"{tmp_path}/archive", shards=2)
    Store().write(f"{tmp_path}/archive/bad.tar", tar([("good.png", picture(99)), ("bad\n\x1b[31m.png", b"no image")]))
    Store().write(f"{tmp_path}/archive/no\n\x1b[31mtar.tar", b"not a tar at all" * 100)
    job = local_job(tmp_path, workers=1).model_dump(mode="json", exclude={"stores", "runtime_env"})
    command = [sys.executable, "-m", "gradosr.jobs.cli", "score", str(write(tmp_path / "score.yaml", job))]
    first = subprocess.run(
        [*command, "--json", "--log-format", "json", "--log-interval", "0"],
        check=False, capture_output=True, text=True, timeout=150,
    )  # fmt: skip
    assert first.returncode == 5, first.stderr
    assert (tmp_path / "results" / "_SUCCESS").exists()
    over = [
        {"bound": "max_bad_images", "found": 1, "total": 14, "allowed": 0},
        {"bound": "max_bad_shards", "found": 1, "total": 4, "allowed": 0},
    ]
    assert json.loads(first.stdout)["exceeded"] == over
    events = [json.loads(line) for line in first.stderr.splitlines()]
    assert {"progress", "summary"} <= {event["event"] for event in events}
    assert (events[-1]["event"], events[-1]["level"], events[-1]["exceeded"]) == ("summary", "warning", over)
    assert "\x1b" not in first.stderr
    for overrides, code in (([], 5), (["max_bad_images=1"], 5), (["max_bad_images=1", "max_bad_shards=0.25"], 0)):
        sets = [part for override in overrides for part in ("--set", override)]
        again = subprocess.run([*command, *sets], check=False, capture_output=True, text=True, timeout=60)
        lines = again.stderr.splitlines()
        assert (again.returncode, len(lines)) == (code, 4 - len(overrides)), again.stderr
        assert lines[1] == "quarantined: no\\n\\x1b[31mtar.tar (reason in quarantine/)"
    assert again.stdout == ""


@pytest.mark.slow
@pytest.mark.parametrize("command", ["audit", "compact"])
def test_an_interruption_does_not_wait_for_a_store_that_does_not_answer(
    command: str, seaweedfs: SeaweedFS, store: Store, bucket: str, tmp_path: Path
) -> None:
    write_results(tmp_path / "results", 20_000)
    for path in sorted((tmp_path / "results").rglob("*")):
        if path.is_file():
            store.write(f"{bucket}/{path.relative_to(tmp_path)}", path.read_bytes())
    with FaultProxy(seaweedfs.endpoint_url) as proxy:
        proxy.path, proxy.always, proxy.stalling = "/parts/", "stall", 3600
        settings = {"endpoint_url": proxy.endpoint_url, "addressing_style": "path", "read_timeout": 3600}
        sets = [word for key, value in settings.items() for word in ("--set", f"store.{key}={value}")]
        arguments = [command, f"{bucket}/results", "--out", str(tmp_path / "out"), *sets]
        words = [sys.executable, "-m", "gradosr.jobs.cli", *arguments]
        with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
            try:
                while not proxy.dealt["stall"]:
                    assert process.poll() is None
                    time.sleep(0.02)
                process.send_signal(signal.SIGINT)
                _, told = process.communicate(timeout=300)
            finally:
                process.kill()
    assert process.returncode == 130, told
    assert told.splitlines()[-1] == "gradosr: interrupted; the same command goes on from here"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"])
def test_a_signal_that_an_import_swallows_still_ends_the_command(number: int, code: int, tmp_path: Path) -> None:
    swallowing = (
        "import time\nprint('importing', flush=True)\n"
        "try:\n    time.sleep(5)\nexcept BaseException:\n    pass\n"  # lasts until the signal is there
        "def build(num_classes):\n    time.sleep(600)\n"  # never to its end: the signal comes once more
    )
    (tmp_path / "swallowing.py").write_text(swallowing)
    job = write(tmp_path / "fit.yaml", fit_document(tmp_path))
    words = [sys.executable, "-m", "gradosr.jobs.cli", "fit", str(job), "--set", "classifier.arch=swallowing:build"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "importing\n"
            process.send_signal(number)
            _, told = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == code, told
