"""`gradosr check`: what it tells of a classifier, and of one that is broken."""

import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from test_jobs import gradosr
from tiny import ARCH, CLASSES, make_bundle, picture, write_archive
from tiny_net import Tiny
from torch import nn

from gradosr.config import FitJob, ScoreJob, ScreenJob, Serving, check_job
from gradosr.store import Store

TRANSFORM = {"resize": [16, 16], "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
TENSORS = 7


def curved(num_classes: int) -> nn.Module:
    """With a tensor that no rule serves."""
    net = Tiny(num_classes)
    net.body[2] = nn.PReLU()
    return net


def soft(num_classes: int) -> nn.Module:
    """Its last layer makes probabilities of the logits."""
    return nn.Sequential(OrderedDict(net=Tiny(num_classes), last=nn.Softmax(1)))


def squashed(num_classes: int) -> nn.Module:
    """Its last layer makes a probability of every logit by itself."""
    return nn.Sequential(OrderedDict(net=Tiny(num_classes), last=nn.Sigmoid()))


@pytest.fixture
def fit_yaml(tmp_path: Path) -> Path:
    """A fit job of a tiny classifier, and two images of each class."""
    torch.manual_seed(0)
    net = Tiny(3).eval()
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    for seed in range(6):
        folder = tmp_path / "known" / CLASSES[seed % 3]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{seed}.png").write_bytes(picture(seed))
    classifier = {"arch": ARCH, "args": {"num_classes": 3}, "classes": list(CLASSES), "transform": TRANSFORM}
    document = {
        "classifier": {**classifier, "weights": str(tmp_path / "w.safetensors")},
        "input": {"kind": "images", "uri": str(tmp_path / "known")},
        "detector": {"kind": "one_class"},
        "bundle": str(tmp_path / "bundle"),
        "batch_size": 6,
        "device": "cpu",
    }
    path = tmp_path / "fit.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_a_fit_config_tells_what_fitting_would_do(fit_yaml, tmp_path, capsys):
    code, out, _ = gradosr(capsys, "check", fit_yaml, "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["arch"], found["classes"], found["detector"]) == (ARCH, list(CLASSES), "one_class")
    assert (found["tensors"], sum(found["rules"].values()), found["fallback"]) == (TENSORS, 2, [])
    assert (found["parameters"], found["features"], found["batch"]) == (1595, 64, 6)
    assert found["transform"] == {**TRANSFORM, "crop": None, "interpolation": "bilinear"}
    assert 0 <= found["right"] <= 6
    assert found["images_per_second"] > 0
    assert not (tmp_path / "bundle").exists()


def test_the_text_says_the_same_in_a_few_lines(fit_yaml, capsys):
    code, out, _ = gradosr(capsys, "check", fit_yaml)
    lines = dict(line.split(None, 1) for line in out.splitlines())
    assert code == 0
    assert lines["classifier"] == f"{ARCH}, 1,595 parameters in {TENSORS} tensors"
    assert lines["classes"] == "3: cat, dog, ship"
    assert lines["detector"] == f"one_class of predicted, last 2 of {TENSORS} tensors"
    assert lines["accuracy"].endswith(" of 6 images of the input are given their label")


def test_what_takes_the_slow_fallback_is_named(fit_yaml, tmp_path, capsys):
    save_file(curved(3).state_dict(), tmp_path / "w.safetensors")
    every = ("--set", "detector={kind: one_class, layers: 1}")
    code, out, _ = gradosr(capsys, "check", fit_yaml, "--set", "classifier.arch=test_inspection:curved", *every)
    assert code == 0
    assert "body.2.weight (no rule: image by image)" in out


def test_classes_in_another_order_are_warned_of(fit_yaml, tmp_path, capsys):
    bias = torch.tensor([0.0, 100.0, 0.0])  # dog, whatever it sees
    weights = {**Tiny(3).state_dict(), "head.bias": bias}
    save_file(weights, tmp_path / "w.safetensors")
    chance = "no more images are given their label than by chance; check the order of the classes and transform"
    code, out, err = gradosr(capsys, "check", fit_yaml)
    assert (code, "2 of 6 images" in out, chance in err) == (0, True, True)


def test_a_bundle_and_the_score_config_that_names_it_tell_the_same(tmp_path, capsys):
    make_bundle(Store(), f"{tmp_path}/bundle")
    write_archive(Store(), f"{tmp_path}/archive", shards=1)
    document = {"bundle": f"{tmp_path}/bundle", "input": {"kind": "tar", "uri": f"{tmp_path}/archive"}}
    document |= {"output": f"{tmp_path}/out", "trust": [ARCH], "batch_size": 4, "device": "cpu"}
    (tmp_path / "score.yaml").write_text(yaml.safe_dump(document))
    settings = ["--set", f"trust=[{ARCH}]", "--set", "batch_size=4", "--set", "device=cpu", "--json"]
    told = [
        json.loads(gradosr(capsys, "check", *arguments)[1])
        for arguments in ([f"{tmp_path}/bundle", *settings], [tmp_path / "score.yaml", "--json"])
    ]
    same = [{name: one[name] for name in one if name not in ("images_per_second", "peak_memory_bytes")} for one in told]
    assert same[0] == same[1]
    assert (told[0]["arch"], told[0]["right"], told[0]["batch"]) == (ARCH, None, 4)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("override", "code", "message"),
    [
        ("classifier.classes=[a, b]", 4, "the weights have 3 classes, `classes` names 2"),
        ("classifier.arch=torchvision:resnet_18", 2, "did you mean resnet18?"),
        ("classifier.arch=torchvision:resnet18", 4, "weights do not fit the architecture: "),
        ("classifier.weights=none.pt", 4, "none.pt: no such file or folder"),
        ("classifier.transform.resize=[0, 1]", 2, "classifier.transform.resize"),
        ("input.uri=nowhere", 4, "nowhere"),
    ],
)
def test_what_is_broken_is_one_line_and_an_exit_code(fit_yaml, tmp_path, capsys, monkeypatch, override, code, message):
    monkeypatch.chdir(tmp_path)
    arguments = ["--set", "classifier.args={num_classes: 2}"] if "classes=[" in override else []
    if "resnet18" in override:
        arguments = ["--set", "classifier.args={}"]
    found, out, err = gradosr(capsys, "check", fit_yaml, "--set", override, *arguments)
    lines = [line for line in err.splitlines() if line.startswith("gradosr: ")]
    assert (found, out, len(lines)) == (code, "", 1)
    assert message in lines[0]


def test_a_target_that_is_none_is_one_line(tmp_path, capsys):
    code, _, err = gradosr(capsys, "check", tmp_path / "none.yaml")
    assert (code, err) == (2, f"gradosr: {tmp_path}/none.yaml: no such file\n")
    code, _, err = gradosr(capsys, "check", tmp_path)
    assert code == 4
    assert f"{tmp_path}: no bundle there (no bundle.json); `gradosr fit` makes one" in err


@pytest.mark.parametrize(
    ("name", "kind"), [("fit-one-class", FitJob), ("score-tar", ScoreJob), ("screen-nightly", ScreenJob)]
)
def test_a_config_tells_its_kind(name, kind):
    assert type(check_job(str(Path(__file__).parents[2] / "configs" / f"{name}.yaml"))) is kind
    assert type(check_job("s3://models/v1/")) is Serving


@pytest.mark.parametrize(
    ("factory", "what"),
    [("soft", "are never negative and sum to 1: a softmax"), ("squashed", "all lie in 0..1: a sigmoid or a softmax")],
)
def test_a_classifier_that_returns_probabilities_is_told(fit_yaml, tmp_path, capsys, factory, what):
    save_file({f"net.{name}": tensor for name, tensor in Tiny(3).state_dict().items()}, tmp_path / "w.safetensors")
    code, _, err = gradosr(capsys, "check", fit_yaml, "--set", f"classifier.arch={__name__}:{factory}")
    assert code == 0
    assert (
        f"the outputs of the classifier {what} seems to make them; unknown images are found less well from "
        "probabilities: return the logits before it, or name their entry in classifier.logits"
    ) in " ".join(err.split())


def test_logits_are_not_taken_for_probabilities(fit_yaml, capsys):
    assert "probabilities" not in gradosr(capsys, "check", fit_yaml)[2]
