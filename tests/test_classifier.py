"""Classifiers by reference: what is built, what is refused, and in which words."""

import io
import os
import pickle
import sys

import pytest
import safetensors.torch
import torch
from torch import nn
from torchvision import models

from gradosr.classifier import build_classifier, check_logits, input_size, load_weights, normalise, read_weights
from gradosr.config import TransformSettings
from gradosr.errors import ClassifierError, ConfigError, NotFound
from gradosr.store import Store

FETCH = "would fetch or read files; give classifier.weights instead"


def refused(error, call, *args, **kwargs):
    """The message of the one line that a call raises."""
    with pytest.raises(error) as raised:
        call(*args, **kwargs)
    assert type(raised.value) is error
    message = str(raised.value)
    assert "\n" not in message
    return message


# --- Building ---


@pytest.mark.parametrize(
    ("arch", "args", "kind"),
    [
        ("torchvision:resnet18", {}, models.ResNet),
        ("torchvision:vit_b_16", {"image_size": 32}, models.VisionTransformer),
        ("timm:resnet10t", {}, nn.Module),
    ],
)
def test_an_architecture_is_built_with_one_logit_per_class_in_eval_mode(arch, args, kind):
    net = build_classifier(arch, args, classes=5)
    assert isinstance(net, kind)
    assert not any(module.training for module in net.modules())
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 5)


def test_args_reach_the_architecture():
    net = build_classifier("torchvision:resnet18", {"num_classes": 7, "zero_init_residual": True}, classes=5)
    assert net.fc.out_features == 7
    assert (net.layer1[0].bn2.weight == 0).all()


@pytest.mark.parametrize(
    ("arch", "args", "message"),
    [
        ("torchvision:resnet18", {"weights": "DEFAULT"}, f"torchvision:resnet18: argument weights {FETCH}"),
        ("torchvision:resnet18", {"weights": None}, f"torchvision:resnet18: argument weights {FETCH}"),
        ("torchvision:resnet18", {"pretrained": True}, f"torchvision:resnet18: argument pretrained {FETCH}"),
        (
            "torchvision:resnet18",
            {"weights_backbone": "x"},
            f"torchvision:resnet18: argument weights_backbone {FETCH}",
        ),
        ("timm:resnet10t", {"checkpoint_path": "/x.pth"}, f"timm:resnet10t: argument checkpoint_path {FETCH}"),
        ("timm:resnet10t", {"pretrained_cfg": {"url": "http://x"}}, f"timm:resnet10t: argument pretrained_cfg {FETCH}"),
        (
            "timm:resnet10t",
            {"pretrained_cfg_overlay": {"file": "/x"}},
            f"timm:resnet10t: argument pretrained_cfg_overlay {FETCH}",
        ),
        ("timm:hf-hub:some/net", {}, f"timm:hf-hub:some/net: hf-hub:some/net {FETCH}"),
        ("timm:hf_hub:some/net", {}, f"timm:hf_hub:some/net: hf_hub:some/net {FETCH}"),
        ("timm:local-dir:/some/net", {}, f"timm:local-dir:/some/net: local-dir:/some/net {FETCH}"),
        ("torchvision:resnet18", {"norm": "https://x/y"}, f"torchvision:resnet18: https://x/y {FETCH}"),
        ("nets:make", {"path": "file:///etc/passwd"}, f"nets:make: file:///etc/passwd {FETCH}"),
        (
            "torchvision:resnet81",
            {},
            "torchvision:resnet81: torchvision has no classifier of that name; did you mean resnet18?",
        ),
        ("timm:resnet10", {}, "timm:resnet10: timm has no classifier of that name; did you mean resnet10t?"),
        ("torchvision:qqq", {}, "torchvision:qqq: torchvision has no classifier of that name"),
        (
            "torchvision:fcn_resnet50",
            {},
            "torchvision:fcn_resnet50: torchvision has no classifier of that name; did you mean resnet50?",
        ),
        ("resnet18", {}, "arch resnet18: expected torchvision:NAME, timm:NAME or package.module:factory"),
        ("torchvision:", {}, "arch torchvision:: expected torchvision:NAME, timm:NAME or package.module:factory"),
        ("", {}, "arch : expected torchvision:NAME, timm:NAME or package.module:factory"),
        (
            "os:system",
            {"command": "touch ran"},
            "os:system: not trusted; a bundle imports no code unless the config says `trust: [os:system]`",
        ),
    ],
)
def test_a_reference_that_may_not_be_used_is_one_clear_line(arch, args, message):
    assert refused(ConfigError, build_classifier, arch, args, 5) == message


@pytest.mark.parametrize(
    ("arch", "args", "message"),
    [
        (
            "torchvision:resnet18",
            {"nonsense": 1},
            "torchvision:resnet18 with args {'nonsense': 1}: "
            "ResNet.__init__() got an unexpected keyword argument 'nonsense'",
        ),
        (
            "torchvision:vit_b_16",
            {"image_size": 33},
            "torchvision:vit_b_16 with args {'image_size': 33}: Input shape indivisible by patch size!",
        ),
        (
            "timm:resnet10t",
            {"block": "x"},
            "timm:resnet10t with args {'block': 'x'}: 'str' object has no attribute 'expansion'",
        ),
    ],
)
def test_arguments_an_architecture_does_not_take_are_one_clear_line(arch, args, message):
    assert refused(ClassifierError, build_classifier, arch, args, 5) == message


# --- Factories ---

FACTORIES = """
from pathlib import Path
from torch import nn

Path("imported").touch()

def small(width=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(12, width)).train()

def number():
    return 3

def broken():
    raise KeyError("width")

def wordy():
    raise ZeroDivisionError("first line\\nsecond line")

def silent():
    assert False

constant = 5
"""


@pytest.fixture
def factories(tmp_path, monkeypatch):
    """A module in a working directory that is no place to import from yet."""
    module = f"factories_{tmp_path.name}"
    (tmp_path / f"{module}.py").write_text(FACTORIES)
    (tmp_path / f"{module}_bad.py").write_text("def nothing(:\n")
    (tmp_path / f"{module}_dies.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return module


def test_a_trusted_factory_is_imported_from_the_working_directory(factories):
    arch = f"{factories}:small"
    net = build_classifier(arch, {"width": 3}, classes=99, trusted=[arch])
    assert net(torch.zeros(2, 3, 2, 2)).shape == (2, 3)
    assert not net.training


def test_an_untrusted_factory_is_not_even_imported(factories, tmp_path):
    for trusted in ((), [f"{factories}:number"], [factories]):
        message = refused(ConfigError, build_classifier, f"{factories}:small", {}, 3, trusted)
        assert message.startswith(f"{factories}:small: not trusted; ")
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (":number", ClassifierError, "{arch} returns int; expected a torch.nn.Module"),
        (":broken", ClassifierError, "{arch} with args {{}}: 'width'"),
        (":wordy", ClassifierError, "{arch} with args {{}}: first line"),
        (":silent", ClassifierError, "{arch} with args {{}}: AssertionError"),
        (":constant", ClassifierError, "{arch} with args {{}}: 'int' object is not callable"),
        (
            ":missing",
            ConfigError,
            "{arch}: cannot be imported: module '{module}' has no attribute 'missing'; put its folder on PYTHONPATH",
        ),
        (
            "_none:x",
            ConfigError,
            "{arch}: cannot be imported: No module named '{module}_none'; put its folder on PYTHONPATH",
        ),
        (
            "_bad:x",
            ConfigError,
            "{arch}: cannot be imported: invalid syntax ({module}_bad.py, line 1); put its folder on PYTHONPATH",
        ),
        ("_dies:x", ConfigError, "{arch}: cannot be imported: division by zero; put its folder on PYTHONPATH"),
    ],
)
def test_a_factory_that_cannot_serve_is_one_clear_line(factories, name, error, message):
    arch = f"{factories}{name}"
    found = refused(error, build_classifier, arch, {}, 3, [arch])
    assert found == message.format(arch=arch, module=factories)


# --- Weights ---


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
    found = read_weights(Store(), f"{tmp_path}/{uri}")
    assert set(found) == set(state)
    assert all(torch.equal(found[name], state[name]) for name in state)


DAMAGED = "damaged, or not a checkpoint of plain tensors; save it by torch.save(net.state_dict(), ...)"
NOT_A_MAPPING = "expected a mapping of names to tensors (a state_dict), found something else"


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")  # torch's own, of a file that torch did not write
@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("evil.pt", saved({"a": Evil()}), DAMAGED),
        ("evil.pkl", pickle.dumps(Evil()), DAMAGED),
        ("evil.pth", pickle.dumps({"a": Evil()}, protocol=2), DAMAGED),
        ("module.pt", saved(nn.Linear(1, 1)), DAMAGED),
        ("garbage.pt", b"garbage", DAMAGED),
        ("empty.pt", b"", DAMAGED),
        ("cut.pt", saved({"a": torch.ones(100)})[:-200], DAMAGED),
        ("nested.pt", saved({"state_dict": {"a": torch.ones(1)}}), NOT_A_MAPPING),
        ("list.pt", saved([torch.ones(1)]), NOT_A_MAPPING),
        ("tensor.pt", saved(torch.ones(1)), NOT_A_MAPPING),
        ("numbered.pt", saved({1: torch.ones(1)}), NOT_A_MAPPING),
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
        (
            lambda w: w.update({f"module.{name}": w.pop(name) for name in list(w)}),
            "6 missing: 0.weight, 0.bias, 1.weight, ...; "
            "6 unexpected: module.0.weight, module.0.bias, module.1.weight, ...",
        ),
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


# --- Input and output ---


@pytest.mark.parametrize(
    ("transform", "size"),
    [
        ({"crop": 24}, (24, 24)),
        ({"crop": (20, 30)}, (20, 30)),
        ({"resize": (20, 30)}, (20, 30)),
        ({"resize": 256, "crop": 224}, (224, 224)),
        ({"resize": (20, 30), "crop": (10, 11)}, (10, 11)),
    ],
)
def test_input_size_is_height_and_width_after_the_transform(transform, size):
    assert input_size(TransformSettings(**transform)) == size


def test_normalise_is_pixels_over_255_less_the_mean_over_the_deviation():
    transform = TransformSettings(crop=2, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    pixels = torch.tensor([0, 51, 102, 255], dtype=torch.uint8).view(1, 1, 2, 2).expand(2, 3, 2, 2)
    found = normalise(pixels, transform)
    assert (found.dtype, found.shape) == (torch.float32, (2, 3, 2, 2))
    for channel, (mean, std) in enumerate(zip(transform.mean, transform.std, strict=True)):
        expected = [(value / 255 - mean) / std for value in (0, 51, 102, 255)]
        assert found[1, channel].flatten().tolist() == pytest.approx(expected, rel=1e-6)
    exact = normalise(pixels, transform, torch.float64)
    torch.testing.assert_close(exact.float(), found)
    assert exact.dtype == torch.float64
    assert normalise(pixels[:0], transform).shape == (0, 3, 2, 2)


def test_a_logit_too_many_is_one_clear_line():
    check_logits(torch.zeros(1, 3), 3)
    assert refused(ClassifierError, check_logits, torch.zeros(1, 4), 3) == (
        "the classifier gives 4 logits, but 3 classes are named; check classifier.classes and args.num_classes"
    )
