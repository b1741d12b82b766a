"""From pixel to logit as the library's own loading has it: transform, network and what the network does to its input.

Random weights stand for the published ones, and nothing is downloaded. On the meta device a network has no numbers, so
that all of a library's can be built in minutes and held against each other by their plain attributes.
"""

import io
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from test_origin import assert_same_pixels, completed, fit_job, ours, photo
from torch import nn
from torchvision import models

from gradosr.classifier.architectures import LIBRARIES
from gradosr.classifier.architectures.timm import of_cfg
from gradosr.classifier.resolve import bring, build, complete
from gradosr.config import CompleteFitJob, FitJob
from gradosr.run.console import Notes
from gradosr.store import Store

TORCHVISION = models.list_models(module=models)
NO_META = tuple(name for name in TORCHVISION if name.startswith("regnet"))
"""Architectures whose constructors compute with tensors, and so cannot be built on the meta device."""
QUICK = {name: {"init_weights": False} for name in ("googlenet", "inception_v3")}
"""Arguments without which initial weights take seconds."""
CLASSES = [f"class {index}" for index in range(1000)]


@pytest.fixture
def published(monkeypatch):
    """Random weights in place of those that torchvision would download."""
    held: OrderedDict[str, torch.Tensor] = OrderedDict()
    enum = models.get_model_weights("resnet18").__base__
    monkeypatch.setattr(enum, "get_state_dict", lambda *_args, **_kwargs: held)
    return held


def attributes(net: nn.Module) -> dict[Any, Any]:
    """Return the type and the plain attributes of every module, without auxiliary heads, which make no logit."""
    plain = (bool, int, float, str, tuple)
    found = {}
    for name, module in net.named_modules():
        if name.startswith(("aux", "AuxLogits")):
            continue
        found[name, "type"] = type(module)
        found |= {
            (name, key): value
            for key, value in vars(module).items()
            if isinstance(value, plain) and not key.startswith("_") and key != "aux_logits"
        }
    return found


def different(found: nn.Module, expected: nn.Module) -> list[tuple[Any, Any, Any]]:
    one, other = attributes(found), attributes(expected)
    return [(key, one.get(key), other.get(key)) for key in one | other if one.get(key) != other.get(key)]


def job_of(arch: str, classes: int = 1000, **classifier: object) -> CompleteFitJob:
    return completed(arch=arch, classes=CLASSES[:classes], **classifier)


# --- torchvision ---


def of_torchvision(name: str, published: OrderedDict[str, torch.Tensor]) -> tuple[nn.Module, nn.Module]:
    """Return an architecture as we build it and as torchvision does with its default weights."""
    job = job_of(f"torchvision:{name}", args=QUICK.get(name, {}))
    found = build(job, job.classifier.args, 1000)
    state = found.state_dict()
    published.update(state)
    published._metadata = state._metadata  # the versions of its modules, without which MNASNet's loader raises
    return found, models.get_model(name, weights="DEFAULT").eval()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ("inception_v3", "googlenet", "vit_h_14") else pytest.mark.slow)
        for name in TORCHVISION
    ],
)
@pytest.mark.filterwarnings("ignore:for .*meta parameter")  # copying into a network without numbers does nothing
def test_a_network_of_torchvisions_is_built_as_for_its_weights(name, published):
    with torch.device("cpu" if name in NO_META else "meta"):
        assert not different(*of_torchvision(name, published))


def lively(net: nn.Module) -> None:
    """Move the initial weights, some of which leave nothing of the image."""
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)


SMALL = [name for name in TORCHVISION if models.get_model_weights(name).DEFAULT.meta["num_params"] < 1e8]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "googlenet" else pytest.mark.slow) for name in SMALL]
)
def test_a_photo_gets_the_logits_that_torchvisions_own_loading_gives_it(name, published, tmp_path):
    theirs = of_torchvision(name, published)[1]
    lively(theirs)
    torch.save({**published, **theirs.state_dict()}, tmp_path / "w.pth")  # with auxiliary heads, as it is published
    job = job_of(f"torchvision:{name}", weights=f"{tmp_path}/w.pth", args=QUICK.get(name, {}))
    net = bring(job, Store(), Notes(io.StringIO()).say)
    image = photo()
    pixels = models.get_model_weights(name).DEFAULT.transforms()(image)
    assert_same_pixels(ours(image, job.classifier.transform), pixels, job.classifier.transform)
    with torch.no_grad():
        logits = theirs(pixels[None])
        assert logits.std() > 0
        torch.testing.assert_close(net(pixels[None]), logits)


@pytest.mark.parametrize(
    ("name", "given", "added"),
    [
        ("inception_v3", {}, {"transform_input": True}),
        ("inception_v3", {"transform": {"crop": 299}}, {"transform_input": True}),
        ("inception_v3", {"transform": {"crop": 299, "mean": [0.5] * 3, "std": [0.5] * 3}}, {}),
        ("inception_v3", {"args": {"transform_input": False}}, {"transform_input": False}),
        ("googlenet", {}, {"transform_input": True}),
        ("vit_h_14", {}, {"image_size": 518}),
        ("vit_h_14", {"transform": {"crop": 224}}, {}),
        ("vit_b_16", {"args": {"image_size": 384}, "transform": {"crop": 384}}, {"image_size": 384}),
        ("resnet18", {}, {}),
    ],
)
def test_what_the_library_adds_is_in_the_job_and_what_the_config_states_stays(name, given, added):
    assert job_of(f"torchvision:{name}", **given).classifier.args == added


def test_what_the_library_adds_is_said_and_a_network_trained_here_is_left_alone():
    said = io.StringIO()
    completed(Notes(said), arch="torchvision:inception_v3", transform={"crop": 299})
    assert said.getvalue() == (
        "args.transform_input: True, as torchvision builds inception_v3 for its own weights; "
        "give it if yours want another\n"
    )
    trained = {**fit_job(arch="torchvision:inception_v3").model_dump(), "train": {"epochs": 1}}
    trained["classifier"]["weights"] = None
    assert complete(FitJob.model_validate(trained), Store(), Notes(said).say).classifier.args == {}


# --- timm ---


@pytest.fixture(scope="module")
def timm():
    return pytest.importorskip("timm", reason="timm is not installed")


def distinct(timm: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a name and the configuration of its weights, one for each transform that occurs."""
    keys = ("input_size", "crop_pct", "crop_mode", "mean", "std", "interpolation")
    seen = set()
    for name in timm.list_pretrained():
        cfg = timm.get_pretrained_cfg(name).to_dict()
        kind = str([cfg.get(key) for key in keys])
        if kind not in seen:
            seen.add(kind)
            yield name, cfg


@pytest.mark.parametrize("largest", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_every_transform_of_timms_is_its_own(timm, largest):
    image, held = photo(), 0
    for name, cfg in distinct(timm):
        if max(cfg["input_size"]) <= largest and cfg.get("crop_mode") != "border":  # borders are refused
            transform = of_cfg(cfg, {}, name).transform
            theirs = timm.data.create_transform(**timm.data.resolve_data_config({}, pretrained_cfg=cfg))
            assert_same_pixels(ours(image, transform), theirs(image), transform)
            held += 1
    assert held > 30


FETCHING = tuple(
    f"vit_{name}_224" for name in ("base_resnet26d", "base_resnet50d", "small_resnet26d", "small_resnet50d_s16")
)
"""Architectures for which timm downloads a backbone before it looks at the weights that it is given."""


def of_timm(timm: Any, name: str) -> tuple[nn.Module, nn.Module]:
    """Return an architecture as we build it for weights and as timm builds it when it loads weights."""
    classes = timm.get_pretrained_cfg(name).num_classes or 10
    args = {"num_classes": classes}
    added = LIBRARIES["timm"].arguments(name, job_of("torchvision:resnet18").classifier.transform)
    found = LIBRARIES["timm"].build(name, {**args, **added}, classes)
    overlay = {"state_dict": found.state_dict(), "num_classes": classes, "label_offset": 0, "source": "timm"}
    return found, timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **args)


@pytest.mark.parametrize("name", ["fbnetc_100", "inception_v3.tv_in1k", "resnet10t", "vit_tiny_patch16_224"])
@pytest.mark.filterwarnings("ignore:for .*meta parameter")
def test_a_network_of_timms_is_built_as_for_its_weights(timm, name):
    with torch.device("meta"):
        assert not different(*of_timm(timm, name))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of deprecated names, and of copying weights into networks without numbers
def test_a_network_of_each_file_of_timms_is_built_as_for_its_weights(timm):
    """All 1,371 take three quarters of an hour; fbnetc_100 alone differed."""
    found = {}
    for module in timm.list_modules():
        name = next((name for name in timm.list_models(module=module) if name not in FETCHING), None)
        if name:
            with torch.device("meta"):
                found[name] = different(*of_timm(timm, name))
    assert len(found) > 50
    assert {name: places for name, places in found.items() if places} == {}
