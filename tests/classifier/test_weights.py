"""Weights as training frameworks write them: what is taken, what is refused, and in which words."""

import argparse
import io
import os
import pickle
import re
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from little_memory import in_little_memory
from test_classifier import refused
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torchvision import models

from gradosr.classifier.weights import ENTRIES, load_weights, read_weights
from gradosr.errors import ClassifierError, NotFound
from gradosr.store import Store


class Evil:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("uri", ["w.safetensors", "w.pt", "w.bin"])
def test_weights_are_read_as_they_were_saved(tmp_path, uri):
    state = models.resnet18(num_classes=3).state_dict()
    body = safetensors.torch.save(state) if uri.endswith(".safetensors") else saved(state)
    (tmp_path / uri).write_bytes(body)
    found, source = read_weights(Store(), f"{tmp_path}/{uri}")
    assert source == f"{tmp_path}/{uri}"
    assert set(found) == set(state)
    assert all(torch.equal(found[name], state[name]) for name in state)


def fault_of_reading(uri):
    read_weights(Store(), uri)
    return ""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_a_checkpoint_that_memory_is_too_small_for_is_not_damaged(tmp_path, name):
    uri, state = f"{tmp_path}/{name}", {"a": torch.zeros(1 << 24)}
    (tmp_path / name).write_bytes(safetensors.torch.save(state) if name.endswith("safetensors") else saved(state))
    answer = in_little_memory(fault_of_reading, 100 << 20, uri)  # the file is read, and no more
    assert answer.startswith(f"MachineFault: {uri}: this machine is at fault, not the data: ")


SAVE = "save plain tensors by torch.save(net.state_dict(), ...)"
DAMAGED = f"damaged, or not a checkpoint; {SAVE}"
NO_WEIGHTS = (
    "expected a mapping of names to tensors (a state_dict), found none; classifier.weights_entry picks an entry"
)


def objects(name):
    return f"holds objects ({name}), which run code; {SAVE}"


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")  # torch's own, of a file that torch did not write
@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("evil.pt", saved({"a": Evil()}), objects("posix.mkdir")),
        ("evil.pkl", pickle.dumps(Evil()), DAMAGED),
        ("evil.pth", pickle.dumps({"a": Evil()}, protocol=2), objects("posix.mkdir")),
        ("module.pt", saved(nn.Linear(1, 1)), objects("torch.nn.modules.linear.Linear")),
        ("garbage.pt", b"garbage", DAMAGED),
        ("empty.pt", b"", DAMAGED),
        ("cut.pt", saved({"a": torch.ones(100)})[:-200], DAMAGED),
        ("no_entry.pt", saved({"epoch": 3, "state_dict": {}}), NO_WEIGHTS),
        (
            "other_entry.pt",
            saved({"net": {"a": torch.ones(1)}}),
            "expected a mapping of names to tensors (a state_dict), found them in net; "
            "classifier.weights_entry picks an entry",
        ),
        ("list.pt", saved([torch.ones(1)]), NO_WEIGHTS),
        ("tensor.pt", saved(torch.ones(1)), NO_WEIGHTS),
        ("numbered.pt", saved({1: torch.ones(1)}), NO_WEIGHTS),
        (
            "garbage.safetensors",
            b"garbage",
            "not a safetensors file: Error while deserializing: header too small",
        ),
        ("pickled.safetensors", saved({"a": torch.ones(1)}), None),
        ("cut.safetensors", safetensors.torch.save({"a": torch.ones(9)})[:-1], None),
    ],
)
def test_files_that_are_no_weights_are_one_clear_line_and_run_nothing(tmp_path, monkeypatch, name, body, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(body)
    found = refused(ClassifierError, read_weights, Store(), f"{tmp_path}/{name}")
    if message is None:
        assert found.startswith(f"{tmp_path}/{name}: not a safetensors file: ")
    else:
        assert found == f"{tmp_path}/{name}: {message}"
    assert not (tmp_path / "ran").exists()


def test_weights_that_are_not_there_are_one_clear_line(tmp_path):
    uri = f"{tmp_path}/none.pt"
    assert refused(NotFound, read_weights, Store(), uri) == f"{uri}: no such file or folder"


def state_of(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def test_loaded_weights_are_the_weights():
    source, target = models.resnet18(num_classes=3).eval(), models.resnet18(num_classes=3).eval()
    weights = {name: value for name, value in state_of(source).items() if not name.endswith("num_batches_tracked")}
    load_weights(target, weights, "w")
    assert torch.equal(source(x := torch.randn(1, 3, 32, 32)), target(x))


def test_weights_of_half_precision_are_cast():
    net = nn.Linear(3, 2)
    load_weights(net, {"weight": torch.full((2, 3), 0.5, dtype=torch.float16), "bias": torch.zeros(2)}, "w")
    assert net.weight.dtype == torch.float32
    assert (net.weight == 0.5).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("1.bias"), "1 missing: 1.bias"),
        (lambda w: w.update(extra=torch.ones(1)), "1 unexpected: extra"),
        (lambda w: w.update({"0.weight": torch.ones(5, 2)}), "1 of another shape: 0.weight (5, 2) instead of (4, 3)"),
        (dict.clear, "6 missing: 0.weight, 0.bias, 1.weight, ..."),
    ],
)
def test_weights_that_do_not_fit_name_the_first_of_each_fault_and_change_nothing(change, message):
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    weights = {name: torch.zeros_like(value) for name, value in net.state_dict().items()}
    before = state_of(net)
    change(weights)
    assert (
        refused(ClassifierError, load_weights, net, weights, "s3://a/w.pt")
        == f"s3://a/w.pt: weights do not fit the architecture: {message}"
    )
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


# --- As frameworks write them ---


@pytest.mark.parametrize("held", [ENTRIES[i:] for i in range(len(ENTRIES))], ids=lambda held: held[0])
def test_of_several_entries_the_first_of_the_documented_order_is_taken(tmp_path, held):
    uri = f"{tmp_path}/checkpoint.pth"
    entries = {name: {"a": torch.full((1,), float(i))} for i, name in enumerate(reversed(held))}
    command_line = argparse.Namespace(lr=0.1, resume="")  # as torchvision's and timm's training scripts leave it
    (tmp_path / "checkpoint.pth").write_bytes(saved({"epoch": 3, "args": command_line, "optimizer": {}, **entries}))
    tensors, source = read_weights(Store(), uri)
    assert (tensors["a"].item(), source) == (len(held) - 1, f"{uri} ({held[0]})")


def test_an_entry_that_is_named_is_taken_and_one_that_is_not_there_is_told(tmp_path):
    uri = f"{tmp_path}/w.pt"
    (tmp_path / "w.pt").write_bytes(saved({"model": {"a": torch.ones(1)}, "net": {"a": torch.zeros(1)}, "step": 1}))
    assert read_weights(Store(), uri, "net").tensors["a"].item() == 0
    assert refused(ClassifierError, read_weights, Store(), uri, "step") == (
        f"{uri}: expected weights in step, found them in model, net; classifier.weights_entry picks an entry"
    )


def small():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("wrap", "prefix"),
    [
        (lambda net: net, ""),
        (nn.DataParallel, "module."),
        (torch.compile, "_orig_mod."),
        (lambda net: torch.compile(nn.DataParallel(net)), "_orig_mod.module."),
        (AveragedModel, "module."),  # with its n_averaged
        (lambda net: AveragedModel(nn.DataParallel(net)), "module.module."),
        (lambda net: nn.ModuleDict({"model": net}), "model."),  # as a LightningModule holds it
    ],
    ids=["plain", "ddp", "compiled", "both", "ema", "ema-of-ddp", "lightning"],
)
def test_prefixes_of_wrappers_are_taken_off(wrap, prefix):
    net, other = small().eval(), small().eval()
    assert load_weights(other, wrap(net).state_dict(), "w") == prefix
    images = torch.randn(5, 3)
    assert torch.equal(other(images), net(images))


def test_a_classifier_whose_own_names_have_a_prefix_keeps_it():
    net, other = nn.ModuleDict({"model": small()}), nn.ModuleDict({"model": small()})
    assert load_weights(other, net.state_dict(), "w") == ""
    assert torch.equal(other["model"][0].weight, net["model"][0].weight)


def test_what_does_not_fit_beside_a_prefix_is_told_without_it():
    weights = {f"model.{name}": tensor for name, tensor in small().state_dict().items()}
    weights["criterion.weight"] = weights.pop("model.2.bias")
    assert refused(ClassifierError, load_weights, small(), weights, "w.ckpt") == (
        "w.ckpt: weights without their prefix model. do not fit the architecture: "
        "1 missing: 2.bias; 1 unexpected: criterion.weight"
    )


def test_names_that_a_prefix_would_make_the_same_are_left_alone():
    weights = {f"model.{name}": tensor for name, tensor in small().state_dict().items()}
    weights["0.weight"] = torch.ones(4, 3)
    message = refused(ClassifierError, load_weights, small(), weights, "w")
    assert message.startswith("w: weights do not fit the architecture: 7 missing: 0.bias, 1.weight, 1.bias, ...; ")


def test_another_number_of_classes_is_named_as_such():
    weights = models.resnet18(num_classes=1000).state_dict()
    assert refused(ClassifierError, load_weights, models.resnet18(num_classes=6), weights, "w.pth", 6) == (
        "w.pth: the weights have 1000 classes, `classes` names 6; name those of the weights, in logit order"
    )


def test_another_width_is_not_taken_for_a_number_of_classes():
    wide = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2)).state_dict()
    message = refused(ClassifierError, load_weights, nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), wide, "w", 2)
    assert message.startswith("w: weights do not fit the architecture: 3 of another shape: 0.weight (5, 3) instead of")


# --- Names of older versions, and of wrappers around the classifier itself ---


def as_published(name: str) -> str:
    """Return torchvision's name in the files that it publishes, or published before its modules were renamed."""
    name = re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", name)
    name = name.replace("parametrizations.weight.original0", "weight_g")
    name = name.replace("parametrizations.weight.original1", "weight_v")
    return re.sub(r"mlp\.([03])\.", lambda found: f"mlp.linear_{1 + int(found[1]) // 3}.", name)


def vit():
    return models.VisionTransformer(8, 4, 2, 2, 8, 16, num_classes=3)


OLD = {
    "densenet": lambda: models.DenseNet(4, (2, 2, 2, 2), 8, num_classes=3),  # torchvision.models.densenet
    "vit": vit,  # torchvision.models.vision_transformer.MLPBlock
    "mnasnet": lambda: models.MNASNet(0.5, num_classes=3),  # needs a version, which safetensors do not have
    "weight_norm": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))),
}
"""Modules of torch and torchvision whose loaders know other names than their own."""


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("kind", OLD)
def test_the_names_of_older_files_are_understood(kind, prefix):
    net, other = OLD[kind](), OLD[kind]()
    weights = {prefix + as_published(name): tensor for name, tensor in state_of(net).items()}
    assert kind == "mnasnet" or {name.removeprefix(prefix) for name in weights} != set(net.state_dict())
    assert load_weights(other, weights, "w") == prefix
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in other.state_dict().items())


def test_old_names_that_fit_no_better_are_told_and_change_nothing():
    net, other = vit(), vit()
    before = state_of(other)
    weights = {as_published(name): tensor for name, tensor in state_of(net).items()}
    weights.pop("class_token")
    assert refused(ClassifierError, load_weights, other, weights, "w") == (
        "w: weights do not fit the architecture: 1 missing: class_token"
    )
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, lambda net: torch.compile(nn.DataParallel(net))])
@pytest.mark.parametrize("saved_as", [lambda net: net, nn.DataParallel, torch.compile])
def test_a_factory_may_return_a_wrapped_network(wrap, saved_as):
    net, other = small(), wrap(small())
    load_weights(other, saved_as(net).state_dict(), "w")
    assert all(
        torch.equal(one, two) for one, two in zip(other.state_dict().values(), net.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(
    "figure",
    [np.float64(0.5), np.float32(0.5), np.int64(3), np.bool_(1), np.float16(1), np.arange(3), np.array("x")],
    ids=lambda figure: figure.dtype.name,
)
def test_figures_of_numpy_beside_the_weights_are_passed_over(tmp_path, figure):
    (tmp_path / "w.pth").write_bytes(saved({"state_dict": {"a": torch.ones(1)}, "best_acc": figure}))
    assert read_weights(Store(), f"{tmp_path}/w.pth").tensors["a"].item() == 1


def test_an_array_of_objects_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.pth").write_bytes(saved({"state_dict": {"a": torch.ones(1)}, "best": np.array([Evil()])}))
    assert "posix.mkdir" in refused(ClassifierError, read_weights, Store(), f"{tmp_path}/w.pth")
    assert not (tmp_path / "ran").exists()
