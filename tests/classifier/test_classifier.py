"""Classifiers by reference: what is built, what is refused, and in which words."""

import sys

import pytest
import torch
from torch import nn
from torchvision import models

from gradosr.classifier.build import build_classifier, check_logits, input_size, normalise
from gradosr.config import TransformSettings
from gradosr.errors import ClassifierError, ConfigError, MachineFault

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
        ("resnet18", {}, "arch resnet18: expected torchvision:NAME, timm:NAME, hf:URI or package.module:factory"),
        (
            "torchvision:",
            {},
            "arch torchvision:: expected torchvision:NAME, timm:NAME, hf:URI or package.module:factory",
        ),
        ("", {}, "arch : expected torchvision:NAME, timm:NAME, hf:URI or package.module:factory"),
        (
            "os:system",
            {"command": "touch ran"},
            "os:system: not trusted; a bundle imports no code unless told: "
            "`trust: [os:system]` in a config, or --set 'trust=[os:system]'",
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
import torch
from pathlib import Path
from torch import nn

Path("imported").touch()

def small(width=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(12, width)).train()

def number():
    return 3

def broken():
    raise KeyError("width")

def greedy():
    return torch.empty(1 << 46)

def greedier():
    return bytearray(1 << 60)

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
    (tmp_path / f"{module}_fills.py").write_text("table = bytearray(1 << 60)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return module


def test_a_trusted_factory_is_imported_from_the_working_directory(factories):
    arch = f"{factories}:small"
    net = build_classifier(arch, {"width": 3}, classes=99, trusted=[arch])
    assert net(torch.zeros(2, 3, 2, 2)).shape == (2, 3)
    assert not net.training


@pytest.mark.parametrize("name", [":greedy", ":greedier", "_fills:small"])
def test_what_this_machine_lacks_is_not_the_architectures_fault(factories, name):
    arch = f"{factories}{name}"
    message = refused(MachineFault, build_classifier, arch, {}, 3, [arch])
    assert message.startswith(f"{arch}: this machine is at fault, not the data: ")


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


def test_the_stem_for_small_images_leaves_their_positions_to_the_blocks() -> None:
    arch = "gradosr.classifier.architectures.cifar:resnet18"
    net = build_classifier(arch, {"num_classes": 6}, 6, trusted=[arch])
    seen: list[tuple[int, ...]] = []
    net.layer1.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 6)
    assert seen == [(2, 64, 32, 32)]
    assert len(list(net.parameters())) == 62
    with pytest.raises(ConfigError, match="not trusted"):
        build_classifier(arch, {"num_classes": 6}, 6)
