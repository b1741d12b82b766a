"""Weights under the names of timm's published files, which its own loader understands. No network is used."""

import inspect
import pkgutil
import re
import socket
import sys

import pytest
import timm
import torch
from test_classifier import refused

from gradosr.classifier.architectures import timm as architectures
from gradosr.classifier.build import build_classifier
from gradosr.classifier.weights import load_weights
from gradosr.errors import ClassifierError


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    def connect(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", connect)


def renamed(state, *pairs):
    """Return tensors under the names that regular expressions make of theirs, one after the other."""
    for pattern, replacement in pairs:
        state = {re.sub(pattern, replacement, name): tensor for name, tensor in state.items()}
    return state


def before(match):
    return f"{match[1]}{int(match[2]) - 1}{match[3]}"


def convnext(state):
    state = renamed(state, (r"^stem\.", "downsample_layers.0."), (r"\.blocks\.", "."), (r"^head\.norm", "norm"),
                    (r"^stages\.(\d)\.downsample", r"downsample_layers.\1"), ("conv_dw", "dwconv"),
                    (r"mlp\.fc", "pwconv"), (r"^head\.fc", "head"))  # fmt: skip
    return {
        name: tensor.flatten(1) if name.endswith(("pwconv1.weight", "pwconv2.weight")) else tensor
        for name, tensor in state.items()
    }


def resmlp(state):
    state = renamed(state, (r"^stem\.", "patch_embed."), (r"linear_tokens\.", "attn."), (r"mlp_channels\.", "mlp."),
                    (r"\.ls(\d)", r".gamma_\1"))  # fmt: skip
    return {name: tensor.flatten() if name.endswith(("alpha", "beta")) else tensor for name, tensor in state.items()}


def swin(state):
    masks = {f"layers.0.blocks.0.attn.{name}": torch.zeros(4) for name in ("attn_mask", "relative_position_index")}
    return renamed(state, (r"^(layers\.)(\d)(\.downsample)", before), (r"^head\.fc", "head")) | masks


def levit(state):
    return state | {"stages.0.blocks.0.attn.attention_bias_idxs": torch.zeros(4, dtype=torch.int64)}


PUBLISHED = {
    "convnext_atto": ({"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}, convnext),
    "crossvit_tiny_240": ({}, lambda state: renamed(state, (r"^(pos_embed|cls_token)_", r"\1."))),
    "deit3_small_patch16_224": (
        {"depth": 1, "embed_dim": 96},
        lambda state: renamed(state, (r"ls(\d)\.gamma", r"gamma_\1")),
    ),
    "densenet121": (
        {"block_config": (1, 1, 1, 1)},
        lambda state: renamed(state, (r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.")),
    ),
    "levit_128s": ({}, levit),
    "pit_xs_224": (
        {},
        lambda state: renamed(
            state, (r"^(transformers\.)(\d)(\.pool)", before), (r"^transformers\.(\d)\.pool", r"pools.\1")
        ),
    ),
    "resmlp_12_224": ({}, resmlp),
    "swin_tiny_patch4_window7_224": ({"depths": (1, 1), "num_heads": (3, 6), "embed_dim": 24}, swin),
}
"""Architectures of timm, arguments that make them small, and the names of the files that their authors published."""


def random_state(net):
    """Return values that no initialisation gives, under the names of a network; tied tensors have the same."""
    state = net.state_dict()
    net.load_state_dict({key: torch.rand_like(one) if one.is_floating_point() else one for key, one in state.items()})
    return {key: tensor.clone() for key, tensor in net.state_dict().items()}


@pytest.mark.parametrize(("name", "prefix"), [*((name, "") for name in PUBLISHED), ("convnext_atto", "module.")])
def test_weights_load_as_they_were_published(name, prefix):
    args, publish = PUBLISHED[name]
    state = random_state(build_classifier(f"timm:{name}", args, 3))
    net = build_classifier(f"timm:{name}", args, 3)
    published = {prefix + key: tensor for key, tensor in publish(state).items()}
    assert {key.removeprefix(prefix) for key in published} != set(state)
    assert load_weights(net, published, "w", 3, lambda found: architectures.own_names(name, args, 3, found)) == prefix
    assert all(torch.equal(tensor, state[key]) for key, tensor in net.state_dict().items())


def test_published_weights_that_do_not_fit_are_told_under_their_names():
    args, publish = PUBLISHED["convnext_atto"]
    net = build_classifier("timm:convnext_atto", args, 3)
    published = publish(random_state(net))
    del published["head.weight"]

    def load():
        load_weights(net, published, "w", 3, lambda found: architectures.own_names("convnext_atto", args, 3, found))

    message = refused(ClassifierError, load)
    assert message.startswith("w: weights do not fit the architecture: 56 missing: stem.0.weight, ")
    assert "unexpected: downsample_layers.0.0.weight, " in message


def test_tensors_that_timms_loader_reshapes_fit_under_their_own_names():
    """Position embeddings for another size of image."""
    small, large = {"img_size": 32}, {"img_size": 64}
    state = random_state(build_classifier("timm:test_vit", small, 3))
    net = build_classifier("timm:test_vit", large, 3)
    load_weights(net, state, "w", 3, lambda found: architectures.own_names("test_vit", large, 3, found))
    assert {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, state[name])} == {"pos_embed"}


def test_what_timms_loader_passes_over_is_missing():
    name, args = "vit_base_patch16_siglip_gap_224", {"depth": 1, "embed_dim": 24, "num_heads": 2}
    state = random_state(build_classifier(f"timm:{name}", args, 3))
    del state["norm.bias"], state["head.weight"]
    assert set(architectures.own_names(name, args, 3, state)) == set(state)


def test_weights_of_another_number_of_classes_are_told_as_such():
    args, _ = PUBLISHED["swin_tiny_patch4_window7_224"]
    name = "swin_tiny_patch4_window7_224"
    weights = build_classifier(f"timm:{name}", args, 5).state_dict()
    with pytest.raises(ClassifierError, match=r"^w: the weights have 5 classes, `classes` names 3"):
        load_weights(build_classifier(f"timm:{name}", args, 3), weights, "w", 3)


SMALL = [
    "beit_base_patch16_224",
    "test_byobnet",
    "cait_xxs24_224",
    "coat_lite_tiny",
    "convnext_atto",
    "cpubone_nano",
    "crossvit_tiny_240",
    "csatv2",
    "cspnext_tiny",
    "davit_tiny",
    "deepseek_vit_412m",
    "deit_tiny_patch16_224",
    "densenet121",
    "edgenext_xx_small",
    "efficientformer_l1",
    "efficientvim_m1",
    "efficientvit_m0",
    "eva02_tiny_patch14_224",
    "fasternet_t0",
    "fastvit_t8",
    "focalnet_tiny_srf",
    "gemma4_vit_167m",
    "ghostnet_050",
    "hiera_tiny_224",
    "hieradet_small",
    "iformer_t",
    "levit_128s",
    "lowformer_b0",
    "test_mambaout",
    "coatnet_pico_rw_224",
    "poolformer_s12",
    "resmlp_12_224",
    "mobilenetv5_300m",
    "mvitv2_tiny",
    "naflexvit_base_patch16_gap",
    "nest_tiny",
    "nextvit_small",
    "pit_ti_224",
    "pvt_v2_b0",
    "qwen3_vit_88m",
    "rdnet_tiny",
    "regnetx_002",
    "sequencer2d_s",
    "shvit_s1",
    "starnet_s050",
    "swiftformer_xs",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "swinv2_cr_tiny_224",
    "tiny_vit_5m_224",
    "tnt_s_patch16_224",
    "tresnet_m",
    "vgg11",
    "test_vit",
    "vit_tiny_r_s16_p8_224",
    "test_vit_relpos",
    "samvit_base_patch16_224",
    "vitamin_small_224",
    "xcit_nano_12_p8_224",
]
"""An architecture of each module of timm that renames what it loads."""


def module_of(name):
    return timm.models.model_entrypoint(name).__module__


def test_every_module_that_renames_is_tried():
    renaming = set()
    for found in pkgutil.iter_modules(timm.models.__path__, "timm.models."):
        module = sys.modules.get(found.name)  # none for the old places of modules
        if module and "pretrained_filter_fn=" in inspect.getsource(module) and "._" not in found.name:
            renaming.add(found.name)
    assert renaming == set(map(module_of, SMALL))


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_networks_own_names_pass_timms_loader_unchanged(name):
    state = random_state(build_classifier(f"timm:{name}", {}, 3))
    found = architectures.own_names(name, {}, 3, state)
    assert set(found) == set(state)
    assert all(torch.equal(tensor, state[key]) for key, tensor in found.items())
