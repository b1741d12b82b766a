"""The fast norms against the slow twin: every architecture, every trap, every refusal."""

import copy
import logging
import math
import re
import subprocess
import sys
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torchvision import models

from gradosr.errors import ClassifierError, ConfigError
from gradosr.gradients import (
    OBJECTIVES,
    GradientEngine,
    calls,
    lay_channels_last,
    objective,
    pick_logits,
    squared_norms,
)
from gradosr.gradients.slow import slow_squared_norms

CLASSES = 6
ALL_OBJECTIVES = (*OBJECTIVES, "n_hot:3", "n_hot:3:7")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def alive(net):
    """In eval mode; no parameter is zero or tiny, BatchNorm has seen data: no gradient vanishes."""
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.abs().max() < 1e-3 or parameter.min() == parameter.max():
                parameter.add_(torch.randn_like(parameter), alpha=0.5)
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 2)
    return net.eval()


def settled(net):
    """With BatchNorm statistics of real activations: a deep network neither vanishes nor explodes."""
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
        norm.reset_running_stats()
    with torch.no_grad():
        net.train()(images(16, 32))
        for norm in norms:
            norm.running_var.clamp_min_(1e-4)
    return net.eval()


def images(batch=3, size=8, width=None, channels=3, dtype=torch.float32):
    return torch.randn(batch, channels, size, width or size).to(dtype)


def double(net):
    return copy.deepcopy(net).double()


def assert_exact_in_float64(net, pixels, name="all_hot"):
    """|ours - twin| <= 1e-9 twin + 1e-12 of the image's largest norm, for every parameter of every image."""
    net, pixels = double(net), pixels.double()
    found, twin = squared_norms(net, pixels, name), slow_squared_norms(net, pixels, name)
    assert found.names == tuple(parameter for parameter, _ in net.named_parameters())
    assert twin.amax() > 1e-8, "nothing is tested where every gradient vanishes"
    assert_within(found, twin, 1e-9 * twin + 1e-12 * twin.amax(1, keepdim=True))
    torch.testing.assert_close(found.logits_BK, net(pixels), rtol=1e-12, atol=1e-12)
    return found


def assert_exact_in_float32(net, pixels, name="all_hot"):
    twin = slow_squared_norms(double(net), pixels.double(), name)
    assert_within_float32(net, pixels, squared_norms(net, pixels, name), twin, name)


def assert_within_float32(net, pixels, found, twin, name="all_hot", views=3):
    """Within 1e-4 of the float64 twin (1e-6 of the largest), or twice what float32 autograd itself is off.

    Off by rounding, or because an activation within rounding of a ReLU's corner falls on its other side:
    where it falls depends on the batch, so the batch is taken both whole and one by one; and on the number of
    threads, so that mirrored images are tried where these are off.
    """
    bound = 1e-4 * twin + 1e-6 * twin.amax(1, keepdim=True)
    if ((found.values_BP - twin).abs() > bound).any():
        for slow in (slow_squared_norms(net, pixels, name), autograd_of_the_whole_batch(net, pixels, name)):
            bound = bound.maximum(2 * (slow - twin).abs())
    try:
        assert_within(found, twin, bound)
    except AssertionError:
        if views == 1:
            raise
        pixels = pixels.flip(views)
        twin = slow_squared_norms(double(net), pixels.double(), name)
        assert_within_float32(net, pixels, squared_norms(net, pixels, name), twin, name, views - 1)
    assert found.values_BP.dtype == torch.float32


def autograd_of_the_whole_batch(net, pixels, name):
    """Compute the slow twin's norms with every image in its batch: one backward pass per image."""
    parameters = list(net.parameters())
    losses = objective(name)(net(pixels))
    rows = [torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True) for loss in losses]
    return torch.tensor([[g.double().pow(2).sum() for g in row] for row in rows], dtype=torch.float64)


def assert_within(found, twin, bound):
    worst = ((found.values_BP.double() - twin).abs() / bound.clamp_min(1e-300)).amax(0)
    off = {name: f"{share:.3g} times the bound" for name, share in zip(found.names, worst.tolist(), strict=True)}
    assert found.values_BP.shape == twin.shape
    assert {name: share for name, share in off.items() if not float(share.split()[0]) <= 1} == {}


def assert_exact(net, pixels, name="all_hot"):
    assert_exact_in_float64(net, pixels, name)
    assert_exact_in_float32(net, pixels, name)


def no_rule(net, pixels):
    """Parameters that go to the fallback."""
    return set(GradientEngine(net).plan(pixels).fallback)


# --- Architectures ---


@pytest.mark.parametrize(
    ("name", "options", "without_rule"),
    [
        ("resnet18", {}, ""),
        pytest.param("mobilenet_v2", {}, "", marks=pytest.mark.slow),
        ("densenet121", {}, ""),
        pytest.param("vgg11_bn", {"dropout": 0.1}, "", marks=pytest.mark.slow),
        pytest.param("vgg16", {}, "", marks=pytest.mark.slow),
        pytest.param("vit_b_16", {"image_size": 32}, r"class_token|encoder\.pos_embedding", marks=pytest.mark.slow),
        pytest.param("convnext_tiny", {}, r".*\.layer_scale", marks=pytest.mark.slow),
    ],
)
def test_every_parameter_of_an_architecture_is_exact(name, options, without_rule):
    net = models.get_model(name, weights=None, num_classes=CLASSES, **options)
    if name.startswith("vgg"):  # its three linear layers as they are, but narrow: 4096 wide they take a minute
        net.classifier[0], net.classifier[3] = nn.Linear(512 * 7 * 7, 48), nn.Linear(48, 48)
        net.classifier[6] = nn.Linear(48, CLASSES)
    settled(alive(net))
    pixels = images(3, 32)
    engine = GradientEngine(net)
    found = engine(pixels, ["all_hot"])[0]
    assert [p for p in engine.plan(pixels).fallback if not re.fullmatch(without_rule, p)] == []
    assert engine.plan(pixels).unused == ()
    precise, exact_pixels = double(net), pixels.double()
    twin = slow_squared_norms(precise, exact_pixels)
    largest = twin.amax(1, keepdim=True)
    assert twin.amin() > 1e-12 * largest.amax(), "every parameter must have a gradient worth the comparison"
    assert_within_float32(net, pixels, found, twin)
    assert_within(squared_norms(precise, exact_pixels), twin, 1e-9 * twin + 1e-12 * largest)
    assert found.logits_BK.shape == (3, CLASSES)
    assert found.features_BF.shape[0] == 3


# --- Traps, each a small network ---


class Net(nn.Module):
    """Layers by name and a forward function of (self, x)."""

    def __init__(self, forward, **layers):
        super().__init__()
        self._forward = [forward]
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self._forward[0](self, x)

    def __deepcopy__(self, memo):
        twin = copy.copy(self)
        memo[id(self)] = twin
        twin.__dict__ = copy.deepcopy(self.__dict__, memo)
        return twin


def conv_net(*convs, channels):
    return nn.Sequential(*convs, nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(channels * 4, CLASSES))


def parameter(*shape):
    return nn.Parameter(torch.randn(*shape))


def tokens(x, size=2):
    """[B, T, C * size * size]."""
    return F.unfold(x, size, stride=size).transpose(1, 2)


def time_first(x):
    """[T, B, I], the batch second."""
    return tokens(x).transpose(0, 1)


CONVS = {
    "plain": nn.Conv2d(3, 5, 3),
    "no bias": nn.Conv2d(3, 5, 3, bias=False),
    "stride": nn.Conv2d(3, 5, 3, stride=2, padding=1),
    "uneven stride": nn.Conv2d(3, 5, 3, stride=(1, 3), padding=(2, 0)),
    "stride that leaves a rest": nn.Conv2d(3, 5, 3, stride=3),
    "dilation": nn.Conv2d(3, 5, 3, dilation=(2, 1), padding=1),
    "groups": nn.Conv2d(3, 6, 3, groups=3, padding=1),
    "depthwise": nn.Conv2d(3, 3, 3, groups=3, bias=False),
    "depthwise multiplied": nn.Conv2d(3, 12, 3, groups=3, stride=2),
    "non-square kernel": nn.Conv2d(3, 5, (1, 5), padding=(0, 2)),
    "one place": nn.Conv2d(3, 5, 8),
    "pointwise": nn.Conv2d(3, 5, 1),
    "same": nn.Conv2d(3, 5, 3, padding="same"),
    "same, even kernel": nn.Conv2d(3, 5, (4, 2), padding="same"),
    "same, dilated even kernel": nn.Conv2d(3, 5, 2, padding="same", dilation=3),
    "valid": nn.Conv2d(3, 5, 3, padding="valid"),
    "reflect": nn.Conv2d(3, 5, 3, padding=(2, 1), padding_mode="reflect"),
    "circular": nn.Conv2d(3, 5, 3, padding=1, padding_mode="circular"),
    "replicate, same": nn.Conv2d(3, 5, (2, 3), padding="same", padding_mode="replicate"),
    # Wide and on few places: the Gram of unfolded patches instead of the gradient itself.
    "wide": nn.Conv2d(3, 64, 3, stride=4),
    "wide, reflect": nn.Conv2d(3, 96, 5, stride=3, padding=2, padding_mode="reflect"),
    "wide, dilation": nn.Conv2d(3, 96, (3, 4), dilation=2, stride=(2, 3)),
    "wide, same": nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(3, 96, (4, 3), padding="same")),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("kind", CONVS)
def test_every_kind_of_convolution_is_exact(kind):
    conv = CONVS[kind]
    net = alive(conv_net(conv, channels=conv(images()).shape[1]))
    assert no_rule(net, images()) == set()
    assert_exact(net, images())
    assert_exact(net, images(2, 8, 13))  # not square


def test_pieces_of_a_batch_are_the_batch(monkeypatch):
    """A batch whose intermediates are too large goes through them in pieces."""
    net = alive(conv_net(CONVS["wide"], nn.Flatten(2), nn.Linear(4, 4), nn.Unflatten(2, (2, 2)), channels=64))
    pixels = images(5)
    whole = squared_norms(net, pixels).values_BP
    for size in (1, 20_000):
        monkeypatch.setattr(calls, "CHUNK_BYTES", size)
        torch.testing.assert_close(squared_norms(net, pixels).values_BP, whole, rtol=1e-5, atol=0)


def test_conv1d_is_exact():
    net = Net(
        lambda self, x: self.head(self.conv2(self.conv1(x.flatten(2))).tanh().mean(2)),
        conv1=nn.Conv1d(3, 8, 5, stride=2, padding=1, dilation=2),
        conv2=nn.Conv1d(8, 8, 2, groups=4, padding="same", bias=False),
        head=nn.Linear(8, CLASSES),
    )
    assert no_rule(alive(net), images()) == set()
    assert_exact(net, images())


def test_many_maps_of_one_image_share_a_convolution():
    """The batch folded with crops: [B * 4, C, H, W]."""
    net = Net(
        lambda self, x: self.head(self.conv(x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(0, 2))
        .tanh().reshape(len(x), 4, -1).mean(1)),
        conv=nn.Conv2d(3, 7, 3),
        head=nn.Linear(28, CLASSES),
    )  # fmt: skip
    assert no_rule(alive(net), images()) == set()
    assert_exact(net, images())


LINEAR_INPUTS = {
    "[B, I]": lambda self, x: self.head(self.linear(tokens(x).mean(1)).tanh()),
    "[B, T, I]": lambda self, x: self.head(self.linear(tokens(x)).tanh().mean(1)),
    "[B, 4, 4, I]": lambda self, x: self.head(self.linear(tokens(x).unflatten(1, (4, 4))).tanh().mean((1, 2))),
    "[B * T, I]": lambda self, x: self.head(
        self.linear(tokens(x).flatten(0, 1)).tanh().unflatten(0, (len(x), -1)).mean(1)
    ),
    "[T, B, I]": lambda self, x: self.head(self.linear(time_first(x)).tanh().mean(0)),
    "[T * B, I]": lambda self, x: self.head(
        self.linear(time_first(x).flatten(0, 1)).tanh().unflatten(0, (-1, len(x))).mean(0)
    ),
    "[4, B, 4, I]": lambda self, x: self.head(
        self.linear(tokens(x).unflatten(1, (4, 4)).transpose(0, 1)).tanh().mean((0, 2))
    ),
    "class token before the patches, untouched by the image": lambda self, x: self.head(
        self.linear(F.pad(tokens(x), (0, 0, 1, 0), value=0.5)).tanh().flatten(1).unflatten(1, (-1, 9)).mean(1)
    ),
}


@pytest.mark.parametrize("layout", LINEAR_INPUTS)
def test_the_batch_is_found_wherever_a_linear_layer_has_it(layout):
    net = alive(Net(LINEAR_INPUTS[layout], linear=nn.Linear(12, 9), head=nn.Linear(9, CLASSES)))
    assert no_rule(net, images()) == set()
    assert_exact(net, images())
    assert_exact(net, images(1))


def test_few_wide_tokens_take_the_gram():
    net = alive(
        Net(
            lambda self, x: self.head(self.linear(tokens(x, 4)).tanh().mean(1)),
            linear=nn.Linear(48, 64),
            head=nn.Linear(64, CLASSES),
        )
    )  # 4 * (48 + 64) < 48 * 64
    assert_exact(net, images())


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 16])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 6])
def test_a_batch_in_second_place_is_not_taken_for_time(batch, length):
    """T == B, and T == 3, the size of the probe."""
    net = alive(
        Net(
            lambda self, x: self.head(self.norm(self.linear(time_first(x)[:length])).tanh().prod(0)),
            linear=nn.Linear(12, 5), norm=nn.LayerNorm(5), head=nn.Linear(5, CLASSES),
        )
    )  # fmt: skip
    assert no_rule(net, images()) == set()
    assert_exact_in_float64(net, images(batch))


NORMS = {
    "LayerNorm": (nn.LayerNorm(12), lambda self, x: self.norm(tokens(x)).flatten(1)),
    "LayerNorm over 2 dimensions": (nn.LayerNorm((16, 12)), lambda self, x: self.norm(tokens(x)).flatten(1)),
    "LayerNorm over 3 dimensions": (nn.LayerNorm((3, 8, 8)), lambda self, x: self.norm(x).flatten(1)),
    "LayerNorm without bias": (nn.LayerNorm(12, bias=False), lambda self, x: self.norm(tokens(x)).flatten(1)),
    "LayerNorm without scale and shift": (
        nn.LayerNorm(12, elementwise_affine=False),
        lambda self, x: self.norm(tokens(x)).flatten(1),
    ),
    "GroupNorm": (nn.GroupNorm(2, 4), lambda self, x: self.norm(self.conv(x)).flatten(1)),
    "GroupNorm of one group": (nn.GroupNorm(1, 4, eps=0.1), lambda self, x: self.norm(self.conv(x)).flatten(1)),
    "GroupNorm without places": (nn.GroupNorm(3, 192), lambda self, x: self.norm(x.flatten(1))),
    "BatchNorm2d": (nn.BatchNorm2d(4, eps=0.1), lambda self, x: self.norm(self.conv(x)).flatten(1)),
    "BatchNorm1d of [B, C]": (nn.BatchNorm1d(192), lambda self, x: self.norm(x.flatten(1))),
    "BatchNorm1d of [B, C, L]": (nn.BatchNorm1d(3), lambda self, x: self.norm(x.flatten(2)).flatten(1)),
    "F.batch_norm, all by name": (
        nn.BatchNorm2d(3),
        lambda self, x: F.batch_norm(
            x, running_mean=self.norm.running_mean, running_var=self.norm.running_var, weight=self.norm.weight,
            bias=self.norm.bias, training=False, momentum=0.3, eps=0.01,
        ).flatten(1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", NORMS)
def test_normalisation_layers_are_exact(kind):
    norm, forward = NORMS[kind]
    net = Net(
        lambda self, x: self.head(forward(self, x).tanh().unflatten(1, (-1, 4)).mean(1)),
        conv=nn.Conv2d(3, 4, 3, padding=1), norm=norm, head=nn.Linear(4, CLASSES),
    )  # fmt: skip
    assert no_rule(alive(net), images()) == set()
    assert_exact(net, images())


RAW = {
    "layer scale": ((4, 1, 1), lambda self, x: self.scale * self.conv(x), set()),
    "position embedding": ((1, 4, 8, 8), lambda self, x: self.conv(x) + self.scale, set()),
    "one number": ((1,), lambda self, x: self.conv(x) * self.scale, set()),
    "number without dimensions": ((), lambda self, x: self.conv(x) * self.scale, set()),
    "subtracted": ((8,), lambda self, x: self.scale - self.conv(x), set()),
    "torch.mul": ((8, 1), lambda self, x: torch.mul(self.conv(x), self.scale), set()),
    "torch.add with alpha": ((8,), lambda self, x: torch.add(self.conv(x), self.scale, alpha=2), {"scale"}),
    "used twice": ((8,), lambda self, x: (self.conv(x) + self.scale).tanh() * self.scale, set()),
    "in place": ((8,), lambda self, x: self.conv(x).add_(self.scale), set()),
    "wider than the sample": ((4, 8, 8), lambda self, x: self.conv(x).mean(1, keepdim=True) * self.scale, {"scale"}),
    "expanded": ((4, 8, 8), lambda self, x: self.conv(x) + self.scale.expand(len(x), -1, -1, -1) * 2, set()),
    "expanded without a batch": ((8,), lambda self, x: self.conv(x) * self.scale.expand(8, 8), set()),
}  # fmt: skip


@pytest.mark.parametrize("batch", [1, 4, 8])
@pytest.mark.parametrize("kind", RAW)
def test_a_parameter_outside_any_layer_is_exact(kind, batch):
    shape, forward, without_rule = RAW[kind]
    net = Net(
        lambda self, x: self.head(forward(self, x).tanh().mean((2, 3))),
        conv=nn.Conv2d(3, 4, 3, padding=1), head=nn.Linear(4, CLASSES),
    )  # fmt: skip
    net.scale = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(3)))
    assert no_rule(net.eval(), images()) == without_rule
    assert_exact(net, images(batch))


def twice(self, x):
    y = self.linear(x.flatten(1)[:, :12]).tanh()
    return self.head(self.linear(y).tanh())


def tied_to_another_layer(self, x):
    y = self.linear(tokens(x)).tanh().mean(1)
    return self.head(F.linear(F.linear(y, self.linear.weight), self.linear.weight, self.head.bias[:1].expand(12)))


def shared_with_an_elementwise_use(self, x):
    y = self.linear(x.flatten(1)[:, :12])
    return self.head((y * self.linear.weight.sum(1)).tanh())


def scaled(self, x):
    return self.head(self.linear(tokens(x) * self.scale).tanh().mean(1))


def class_token(self, x):
    y = torch.cat([self.scale.expand(len(x), 1, 12), tokens(x)], 1)
    return self.head((self.linear(y).softmax(1) * y).sum(1))


def no_images_in_the_input(self, x):
    """A linear layer over a parameter: nothing of it depends on the image but its gradient."""
    return self.head((x.flatten(1)[:, :12] * self.linear(self.scale)).tanh())


def functional_matmul(self, x):
    return self.head((x.flatten(1)[:, :12] @ self.linear.weight.T + self.linear.bias).tanh())


def in_place_input(self, x):
    x -= 0.3
    x.mul_(2)
    return self.head(self.linear(tokens(x)).tanh().mean(1))


@pytest.mark.parametrize(
    ("forward", "without_rule"),
    [
        (twice, set()),
        (tied_to_another_layer, set()),
        (shared_with_an_elementwise_use, set()),
        (scaled, set()),
        (class_token, set()),
        (no_images_in_the_input, set()),
        (functional_matmul, {"linear.weight"}),
        (in_place_input, set()),
    ],
)
def test_a_parameter_used_in_odd_places_is_exact(forward, without_rule):
    net = Net(forward, linear=nn.Linear(12, 12), head=nn.Linear(12, CLASSES))
    if forward in (scaled, class_token, no_images_in_the_input):
        net.scale = parameter(12)
    pixels = images()
    before = pixels.clone()
    assert no_rule(net.eval(), pixels) == without_rule
    if forward is not in_place_input:
        assert_exact(net, pixels)
        return
    found = [squared_norms(net, pixels), squared_norms(double(net), pixels.double())]
    assert torch.equal(pixels, before), "the caller's images were changed"
    twin = torch.cat([slow_squared_norms(double(net), one.double()[None]) for one in pixels])
    assert_within(found[0], twin, 1e-4 * twin + 1e-6 * twin.amax(1, keepdim=True))
    assert_within(found[1], twin, 1e-9 * twin + 1e-12 * twin.amax(1, keepdim=True))


def test_tied_convolutions_and_norms_add_before_the_norm():
    def forward(self, x):
        y = self.norm(self.conv(x)).tanh()
        y = self.norm(self.conv(y)).tanh()
        return self.head(self.group(self.layer(self.group(self.layer(y)))).mean((2, 3)))

    net = Net(
        forward, conv=nn.Conv2d(3, 3, 3, padding=1, stride=1), norm=nn.BatchNorm2d(3), group=nn.GroupNorm(1, 3),
        layer=nn.LayerNorm(8), head=nn.Linear(3, CLASSES),
    )  # fmt: skip
    assert no_rule(alive(net), images()) == set()
    assert_exact(net, images())


def test_tied_parameters_have_one_name_and_one_norm():
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 12))
    net[5].weight = net[3].weight
    net.append(nn.Linear(12, CLASSES))
    found = assert_exact_in_float64(net.eval(), images())
    assert "3.weight" in found.names
    assert "5.weight" not in found.names
    assert_exact_in_float32(net, images())


def test_in_place_activations_after_every_layer_are_exact():
    net = alive(
        nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(8), nn.ReLU6(inplace=True),
            nn.Conv2d(8, 8, 3, groups=8), nn.SiLU(inplace=True), nn.GroupNorm(2, 8), nn.LeakyReLU(0.2, inplace=True),
            nn.Flatten(), nn.LayerNorm(128), nn.ELU(inplace=True), nn.Linear(128, 16), nn.Hardtanh(inplace=True),
            nn.Linear(16, CLASSES),
        )
    )  # fmt: skip
    assert no_rule(net, images()) == set()
    assert_exact(net, images())


def test_an_input_overwritten_after_its_layer_is_exact_or_refused():
    def forward(self, x):
        y = self.stem(x)
        z = self.conv(y)
        y.mul_(2)  # autograd with trainable weights would refuse it, with frozen ones it would not notice
        return self.head((y + z).mean((2, 3)))

    net = Net(forward, stem=nn.Conv2d(3, 4, 1), conv=nn.Conv2d(4, 4, 3, padding=1), head=nn.Linear(4, CLASSES)).eval()
    with pytest.raises(ClassifierError) as refused:
        squared_norms(net, images())
    assert str(refused.value) == (
        "the classifier overwrites the input of a layer in place after the layer used it; "
        "replace the in-place operation"
    )


def test_residuals_added_in_place_are_exact():
    def forward(self, x):
        y = self.stem(x)
        y += self.conv(y.relu())
        y += self.conv2(F.relu(y))
        return self.head(y.mean((2, 3)))

    net = Net(
        forward, stem=nn.Conv2d(3, 4, 1), conv=nn.Conv2d(4, 4, 3, padding=1), conv2=nn.Conv2d(4, 4, 1),
        head=nn.Linear(4, CLASSES),
    )  # fmt: skip
    assert_exact(net.eval(), images())


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("length", [3, 16])
def test_multi_head_attention_has_rules(batch_first, length):
    def forward(self, x):
        y = tokens(x)[:, :length] if batch_first else time_first(x)[:length]
        return self.head(self.attention(y, y, y)[0].mean(1 if batch_first else 0))

    net = Net(forward, attention=nn.MultiheadAttention(12, 3, batch_first=batch_first), head=nn.Linear(12, CLASSES))
    assert no_rule(alive(net), images()) == set()
    assert_exact(net, images())
    assert_exact(net, images(4))


def test_cross_attention_masks_and_appended_keys_are_exact():
    def forward(self, x):
        mask = torch.ones(4, 16, dtype=torch.bool).triu(9)
        y = tokens(x)
        weights = self.attention(y[:, :4], y, y * 2, attn_mask=mask, average_attn_weights=False)
        return self.head(weights[0].mean(1)) + weights[1].sum((1, 2))[:, :CLASSES]

    net = Net(
        forward, attention=nn.MultiheadAttention(12, 2, batch_first=True, add_bias_kv=True), head=nn.Linear(12, CLASSES)
    )
    assert_exact(alive(net), images())


def test_a_transformer_layer_is_exact():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 2, stride=2), nn.Flatten(2), nn.Unflatten(2, (16, 1)), nn.Flatten(2),
        nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True), nn.Flatten(),
        nn.Linear(128, CLASSES),
    )  # fmt: skip
    assert no_rule(alive(net), images()) == set()
    assert_exact(net, images())


@pytest.mark.parametrize("parametrise", [weight_norm, spectral_norm])
def test_a_parametrised_weight_is_exact(parametrise):
    net = nn.Sequential(parametrise(nn.Conv2d(3, 8, 3)), nn.Tanh(), nn.Flatten(), parametrise(nn.Linear(288, CLASSES)))
    assert "0.bias" not in no_rule(net.eval(), images())
    assert_exact(net, images())


class Pick(nn.Module):
    def forward(self, x):
        return x[0][:, -1]


@pytest.mark.parametrize(
    "layers",
    [
        [nn.ConvTranspose2d(3, 4, 2), nn.Flatten(), nn.LazyLinear(CLASSES)],
        [nn.Conv2d(3, 4, 3), nn.PReLU(4), nn.Flatten(), nn.LazyLinear(CLASSES)],
        [nn.InstanceNorm2d(3, affine=True), nn.Flatten(), nn.LazyLinear(CLASSES)],
        [nn.Unflatten(1, (1, 3)), nn.Conv3d(1, 4, 2), nn.Flatten(), nn.LazyLinear(CLASSES)],
        [nn.Flatten(2), nn.GRU(64, 7, batch_first=True), Pick(), nn.Linear(7, CLASSES)],
    ],
    ids=["transposed convolution", "PReLU", "InstanceNorm", "Conv3d", "GRU"],
)
def test_a_layer_without_a_rule_is_exact(layers):
    net = nn.Sequential(*layers)
    net(images())
    assert no_rule(alive(net), images())
    assert_exact(net, images())


def test_a_classifier_with_casts_of_its_own_is_exact_in_float32():
    """It does not run in float64, so its plan is made in float32."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, CLASSES)).eval()
    cast = Net(lambda self, x: self.net(x.float()), net=net).eval()
    pixels = images()
    found, twin = squared_norms(cast, pixels), slow_squared_norms(double(net), pixels.double())
    assert no_rule(cast, pixels) == set()
    assert_within(found, twin, 1e-4 * twin + 1e-6 * twin.amax(1, keepdim=True))


def test_a_layer_of_higher_precision_is_exact_where_the_classifier_casts():
    wide, head = nn.Linear(192, 9), nn.Linear(9, CLASSES)
    mixed = Net(lambda self, x: self.head(self.wide(x.flatten(1).double()).float()), wide=double(wide), head=head)
    twin = slow_squared_norms(nn.Sequential(nn.Flatten(), double(wide), double(head)), (pixels := images()).double())
    found = squared_norms(mixed.eval(), pixels)
    assert no_rule(mixed, pixels) == set()
    assert_within(found, twin, 1e-4 * twin + 1e-6 * twin.amax(1, keepdim=True))


def test_preprocessing_without_gradients_is_exact():
    def forward(self, x):
        with torch.no_grad():
            x = self.frozen(x)
        return self.head(x.tanh().flatten(1))

    net = Net(forward, frozen=nn.Conv2d(3, 2, 3), head=nn.Linear(72, CLASSES))
    found = assert_exact_in_float64(net.eval(), images())
    assert (found.values_BP[:, :2] == 0).all()  # frozen.weight, frozen.bias


def test_a_branch_cut_off_from_its_trunk_is_exact():
    net = Net(
        lambda self, x: self.head(y := self.trunk(x.flatten(1)).tanh()) + self.side(y.detach()),
        trunk=nn.Linear(192, 9), head=nn.Linear(9, CLASSES), side=nn.Linear(9, CLASSES),
    )  # fmt: skip
    assert_exact(net.eval(), images())


def test_a_parameter_that_no_gradient_reaches_is_zero():
    net = Net(lambda self, x: self.head(x.flatten(1)), head=nn.Linear(192, CLASSES))
    net.lonely = nn.Linear(2, 2)
    net.scalar = nn.Parameter(torch.tensor(1.0))
    found = assert_exact_in_float64(net.eval(), images())
    norms = dict(zip(found.names, found.values_BP.unbind(1), strict=True))
    assert all((norms[name] == 0).all() for name in ("lonely.weight", "lonely.bias", "scalar"))
    assert GradientEngine(net).plan(images()).unused == ("scalar", "lonely.weight", "lonely.bias")


def test_a_head_that_starts_at_zero_is_planned_and_exact():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, CLASSES)).eval()
    nn.init.zeros_(net[3].weight)
    assert no_rule(net, images()) == set()
    found = assert_exact_in_float64(net, images())
    assert (found.values_BP[:, :2] == 0).all()
    assert (found.values_BP[:, 2:] > 0).all()


# --- The classifier and the images stay as they were ---


def test_the_classifier_is_left_as_it_was():
    net = conv_net(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.PReLU(), channels=4)
    alive(net)
    net[0].requires_grad_(False)
    net[1].bias.requires_grad_(False)
    flags = {name: p.requires_grad for name, p in net.named_parameters()}
    state = {name: value.clone() for name, value in net.state_dict().items()}
    pixels = images().requires_grad_()
    before = pixels.detach().clone()
    assert_within(
        squared_norms(net, pixels),
        twin := slow_squared_norms(double(net), before.double()),
        1e-4 * twin + 1e-6 * twin.amax(1, keepdim=True),
    )
    assert {name: p.requires_grad for name, p in net.named_parameters()} == flags
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert pixels.grad is None
    assert torch.equal(pixels, before)


def test_flags_come_back_when_the_classifier_fails():
    net = Net(lambda self, x: self.linear(x), linear=nn.Linear(5, CLASSES)).eval()
    net.linear.bias.requires_grad_(False)
    with pytest.raises(RuntimeError):
        squared_norms(net, images())
    assert (net.linear.weight.requires_grad, net.linear.bias.requires_grad) == (True, False)


@pytest.mark.parametrize("ground", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_callers_gradient_mode_does_not_matter(ground):
    net = alive(conv_net(nn.Conv2d(3, 4, 3), nn.PReLU(), channels=4))
    pixels = images()
    expected = squared_norms(net, pixels).values_BP
    with ground():
        found = squared_norms(net, pixels.clone()).values_BP  # under inference_mode an inference tensor
        assert torch.is_grad_enabled() == (ground is torch.enable_grad)
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad


def test_results_do_not_hold_the_graph():
    found = squared_norms(alive(conv_net(nn.Conv2d(3, 4, 3), channels=4)), images())
    assert not any(t.requires_grad for t in (found.values_BP, found.logits_BK, found.features_BF))


@pytest.mark.parametrize("shape", [(3, 8, 13), (3, 13, 8), (3, 40, 6)])
def test_images_need_not_be_square(shape):
    net = alive(conv_net(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), channels=4))
    assert_exact(net, torch.randn(3, *shape))


def test_channels_last_images_and_weights_are_exact():
    net = alive(
        conv_net(nn.Conv2d(3, 64, 3, stride=2), nn.GroupNorm(4, 64), nn.Conv2d(64, 64, 3, groups=2), nn.BatchNorm2d(64),
                 nn.Conv2d(64, 64, 1, stride=2), channels=64)
    )  # fmt: skip
    pixels = images(3, 12)
    expected = squared_norms(net, pixels).values_BP
    last = torch.channels_last
    assert_exact(net, pixels.to(memory_format=last))
    assert_exact(net.to(memory_format=last), pixels.to(memory_format=last))
    torch.testing.assert_close(squared_norms(net, pixels).values_BP, expected, rtol=1e-4, atol=0)


@pytest.mark.slow
def test_weights_laid_out_channels_last_give_the_same_norms():
    net = settled(models.resnet18(num_classes=CLASSES)).double()
    pixels = images(2, 64, dtype=torch.float64)
    expected = GradientEngine(net)(pixels, ["all_hot"])[0]
    lay_channels_last(net)
    assert net.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    found = GradientEngine(net)(pixels, ["all_hot"])[0]
    torch.testing.assert_close(found.values_BP, expected.values_BP, rtol=1e-9, atol=0)


def test_views_and_strided_images_are_exact():
    net = alive(conv_net(nn.Conv2d(3, 4, 3), channels=4))
    pixels = torch.randn(6, 5, 16, 16)[::2, 1:4, ::2, 1::2]
    torch.testing.assert_close(squared_norms(net, pixels).values_BP, squared_norms(net, pixels.clone()).values_BP)


def test_a_batch_is_its_images_one_by_one():
    net = settled(models.resnet18(num_classes=CLASSES)).double()
    engine, pixels = GradientEngine(net), images(5, 32, dtype=torch.float64)
    together = engine(pixels, ["all_hot"])[0]
    alone = [engine(pixels[i : i + 1], ["all_hot"])[0] for i in range(5)]
    torch.testing.assert_close(together.values_BP, torch.cat([one.values_BP for one in alone]), rtol=1e-9, atol=0)
    assert alone[0].values_BP.shape == (1, 62)


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.PReLU()], ids=["rules", "fallback"])
def test_no_image_gives_no_rows(activation):
    net = alive(conv_net(nn.Conv2d(3, 64, 3, stride=4), activation, channels=64))
    for engine in (GradientEngine(net), warm := GradientEngine(net)):
        if engine is warm:
            engine(images(2), ["all_hot"])
        found = engine(images(0), ["all_hot", "predicted"])
        assert [one.values_BP.shape for one in found] == [(0, len(engine.names))] * 2
        assert found[0].logits_BK.shape == (0, CLASSES)
        assert found[0].features_BF.shape == (0, 256)
        assert found[0].values_BP.dtype == torch.float32


def test_one_engine_serves_several_sizes_and_types():
    net = alive(conv_net(nn.Conv2d(3, 4, 3), channels=4))
    engine = GradientEngine(net)
    for size in (8, 11, 8):
        pixels = images(2, size)
        twin = slow_squared_norms(double(net), pixels.double())
        assert_within(engine(pixels, ["all_hot"])[0], twin, 1e-4 * twin + 1e-6 * twin.amax(1, keepdim=True))


def test_weights_may_change_between_calls():
    net = alive(conv_net(nn.Conv2d(3, 4, 3), channels=4))
    engine, pixels = GradientEngine(net), images()
    engine(pixels, ["all_hot"])
    with torch.no_grad():
        net[0].weight.mul_(3)
    twin = slow_squared_norms(double(net), pixels.double())
    assert_within(engine(pixels, ["all_hot"])[0], twin, 1e-4 * twin + 1e-6 * twin.amax(1, keepdim=True))


def test_features_are_the_input_of_the_last_linear_layer():
    net = alive(models.resnet18(num_classes=CLASSES))
    pixels = images(2, 32)
    seen = []
    net.fc.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].detach()))
    found = squared_norms(net, pixels)
    torch.testing.assert_close(found.features_BF, seen[-1])
    torch.testing.assert_close(found.logits_BK, net.fc(found.features_BF))


def test_no_features_where_no_linear_layer_makes_the_logits():
    net = nn.Sequential(nn.Conv2d(3, CLASSES, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    assert squared_norms(net, images()).features_BF is None
    scaled_head = Net(lambda self, x: 2 * self.head(x.flatten(1)), head=nn.Linear(192, CLASSES)).eval()
    assert squared_norms(scaled_head, images()).features_BF is None


@pytest.mark.parametrize("rest", [[nn.Tanh()], [nn.PReLU()]], ids=["rules", "fallback"])
def test_nan_pixels_stay_in_their_image(rest):
    net = alive(
        conv_net(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), *rest, nn.Conv2d(8, 64, 3, stride=3), nn.GroupNorm(2, 64),
                 channels=64)
    )  # fmt: skip
    pixels = images(4)
    clean = squared_norms(net, pixels)
    pixels[1, 0, 2, 3] = math.nan
    pixels[2] = math.inf
    found = squared_norms(net, pixels)
    neighbours = [0, 3]
    torch.testing.assert_close(found.values_BP[neighbours], clean.values_BP[neighbours], rtol=1e-6, atol=0)
    torch.testing.assert_close(found.logits_BK[neighbours], clean.logits_BK[neighbours], rtol=1e-6, atol=0)
    assert found.values_BP[1].isnan().any()
    assert found.values_BP[2].isnan().any()


# --- Objectives ---


@pytest.mark.parametrize("name", ALL_OBJECTIVES)
def test_every_objective_is_exact(name):
    net = alive(conv_net(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.PReLU(), channels=4))
    assert_exact(net, images(), name)


def test_several_objectives_in_one_call_are_those_of_separate_calls():
    net = alive(conv_net(nn.Conv2d(3, 64, 3, stride=4), nn.BatchNorm2d(64), nn.PReLU(), channels=64))
    engine, pixels = GradientEngine(net), images()
    together = engine(pixels, ALL_OBJECTIVES)
    for name, found in zip(ALL_OBJECTIVES, together, strict=True):
        alone = squared_norms(net, pixels, name)
        assert found.names == alone.names
        assert torch.equal(found.values_BP, alone.values_BP)
        assert torch.equal(found.logits_BK, alone.logits_BK)
    distinct = {tuple(found.values_BP[0].tolist()) for found in together}
    assert len(distinct) == len(ALL_OBJECTIVES)
    assert [found.values_BP[0, 0] for found in engine(pixels, ["uniform", "all_hot", "uniform"])] == [
        together[ALL_OBJECTIVES.index(name)].values_BP[0, 0] for name in ("uniform", "all_hot", "uniform")
    ]
    (forward,) = engine(pixels, [])
    assert (forward.names, forward.values_BP.shape) == ((), (len(pixels), 0))
    torch.testing.assert_close(forward.logits_BK, together[0].logits_BK)
    assert not forward.logits_BK.requires_grad


def test_features_head_and_middle_activations_are_those_of_the_layers():
    """The middle one of five layers is the third; its input, its mean over positions."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Conv2d(5, 6, 3), nn.AdaptiveAvgPool2d(1)]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3, bias=False)).eval()
    pixels = torch.randn(4, 3, 9, 9)
    for objectives in ([], ["all_hot"]):
        (found,) = GradientEngine(net)(pixels, objectives)
        torch.testing.assert_close(found.middle_BM, net[:4](pixels).mean((2, 3)))
        torch.testing.assert_close(found.features_BF, net[:-1](pixels))
        assert torch.equal(found.head.weight_KF, net[-1].weight)
        assert torch.equal(found.head.bias_K, torch.zeros(3))


def by_hand(name, z):
    """The loss of one image in plain Python."""
    K = len(z)
    log_sum = math.log(sum(math.exp(v) for v in z))
    sigmoid = [1 / (1 + math.exp(-v)) for v in z]
    if name == "all_hot":
        return -sum(math.log(s) for s in sigmoid) / K
    if name == "all_zero":
        return -sum(math.log(1 - s) for s in sigmoid) / K
    if name == "predicted":
        return log_sum - max(z)
    if name == "uniform":
        return sum(log_sum - v for v in z) / K
    if name == "max_logit":
        return max(z)
    hot = hot_places(name, K)
    return -sum(math.log(s if k in hot else 1 - s) for k, s in enumerate(sigmoid)) / K


def hot_places(name, classes):
    """Classes of an n_hot label: where the logit's gradient is negative."""
    z = torch.zeros(1, classes, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(objective(name)(z).sum(), z)
    assert set((gradient * classes).flatten().tolist()) <= {-0.5, 0.5}
    return set((gradient[0] < 0).nonzero().flatten().tolist())


@pytest.mark.parametrize("name", ALL_OBJECTIVES)
def test_objectives_are_their_formulas(name):
    logits = 3 * torch.randn(5, CLASSES, dtype=torch.float64)
    expected = [by_hand(name, row) for row in logits.tolist()]
    torch.testing.assert_close(objective(name)(logits), torch.tensor(expected, dtype=torch.float64))


def test_a_confounding_label_has_its_ones_at_seeded_places():
    assert [len(hot_places(f"n_hot:{n}", 10)) for n in (0, 2, 3, 9, 10)] == [0, 2, 3, 9, 10]
    assert hot_places("n_hot:3", 10) == hot_places("n_hot:3:0", 10)
    assert len({frozenset(hot_places(f"n_hot:3:{seed}", 10)) for seed in range(20)}) > 10
    logits = torch.randn(4, CLASSES)
    assert torch.equal(objective("n_hot:6")(logits), objective("all_hot")(logits))
    assert torch.equal(objective("n_hot:0")(logits), objective("all_zero")(logits))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("n_hot:1", "objective n_hot:1: a confounding label of 6 classes has 0 or 2 to 6 ones"),
        ("n_hot:99", "objective n_hot:99: a confounding label of 6 classes has 0 or 2 to 6 ones"),
        *(
            (name, f"objective {name}: unknown (valid: {', '.join(OBJECTIVES)}, n_hot:N, n_hot:N:SEED)")
            for name in ("nonsense", "n_hot", "n_hot:", "n_hot:two", "n_hot:-2", "n_hot:2:3:4", "n_hot:²", "")
        ),
    ],
)  # fmt: skip
def test_an_objective_that_is_none_is_one_clear_line(name, message):
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES)).eval()
    with pytest.raises(ConfigError) as refused:
        squared_norms(net, images(), name)
    assert str(refused.value) == message


# --- The fallback is announced ---


def test_fallback_parameters_are_announced_by_name_once(caplog):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.PReLU(4), nn.Flatten(), nn.Linear(144, CLASSES)).eval()
    net.lonely = nn.Parameter(torch.ones(1))
    engine, pixels = GradientEngine(net), images()
    with caplog.at_level(logging.INFO, "gradosr"):
        for _ in range(2):
            engine(pixels, ["all_hot"])
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "no rule for 1 of 6 parameters, exact per-sample fallback (slow): 1.weight"),
        ("INFO", "no gradient reaches lonely: zero"),
    ]
    assert_exact(net, pixels)


def test_nothing_is_announced_where_every_parameter_has_a_rule(caplog):
    with caplog.at_level(logging.INFO, "gradosr"):
        squared_norms(alive(models.resnet18(num_classes=CLASSES)), images(1, 32))
    assert caplog.records == []


# --- Refusals ---


def training(net):
    net[0].train()
    return net


def flat(*layers):
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(192, CLASSES)).eval()


def untracked(norm):
    norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None
    return norm


BATCH_STATISTICS = (
    "a BatchNorm uses the statistics of its batch: images would influence each other's gradients; "
    "call .eval() and keep track_running_stats on"
)
CUT_OFF = (
    "the classifier's logits are cut off from its parameters (torch.no_grad, .detach() or .numpy() in its forward "
    "pass); gradients need the whole path"
)
RANDOM = (
    "the classifier returns different logits for the same images each time; make its forward pass repeatable "
    "(F.dropout drops in eval mode too unless it is given training=self.training)"
)
INFLUENCE = "images of one batch influence each other's logits; per-image gradients do not exist"
ANOTHER_PATH = (
    "the classifier calls other layers for this batch than for a batch it was tried with; "
    "its path must not depend on pixels or on the size of the batch"
)


def without_gradients(self, x):
    with torch.no_grad():
        return self.head(x.flatten(1))


def through_numpy(self, x):
    return torch.from_numpy(self.head(x.flatten(1)).detach().numpy())


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (lambda: flat().train(), "the classifier itself is in training mode; call .eval() on the classifier first"),
        (lambda: training(flat()), "0 is in training mode; call .eval() on the classifier first"),
        (lambda: flat(nn.BatchNorm1d(192, track_running_stats=False)), BATCH_STATISTICS),
        (lambda: flat(untracked(nn.BatchNorm1d(192))), BATCH_STATISTICS),
        (
            lambda: nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), *flat()).eval(),
            BATCH_STATISTICS,
        ),
        (lambda: Net(without_gradients, head=nn.Linear(192, CLASSES)).eval(), CUT_OFF),
        (lambda: Net(lambda self, x: self.head(x.flatten(1)).detach(), head=nn.Linear(192, CLASSES)).eval(), CUT_OFF),
        (lambda: Net(through_numpy, head=nn.Linear(192, CLASSES)).eval(), CUT_OFF),
        (lambda: Net(lambda self, x: x.flatten(1)).eval(), CUT_OFF),
        (
            lambda: Net(lambda self, x: (self.head(x.flatten(1)), x), head=nn.Linear(192, CLASSES)).eval(),
            "the classifier returns a tuple of 0, 1; pick the logits by classifier.logits: 0, or by "
            "pick_logits(classifier, 0)",
        ),
        (
            lambda: Net(lambda self, x: {"x": x, "z": self.head(x.flatten(1))}, head=nn.Linear(192, CLASSES)).eval(),
            "the classifier returns a dict of x, z; pick the logits by classifier.logits: z, or by "
            "pick_logits(classifier, 'z')",
        ),
        (
            lambda: Net(lambda self, x: [x, "logits"]).eval(),
            "the classifier returns a list of 0; none of them is logits [batch, classes]",
        ),
        (lambda: Net(lambda self, x: None).eval(), "the classifier returns NoneType for 3 images; expected logits "
                                                   "[batch, classes]"),
        (
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 1)).eval(),
            "the classifier gives logits (3, 1) for 3 images; expected one for each of at least two classes "
            "(of a sigmoid's single logit z: [0, z])",
        ),
        (
            lambda: nn.Conv2d(3, CLASSES, 8).eval(),
            "the classifier returns (3, 6, 1, 1) for 3 images; expected logits [batch, classes]",
        ),
        (
            lambda: Net(lambda self, x: self.head(x.flatten(1)).sum(0), head=nn.Linear(192, CLASSES)).eval(),
            "the classifier returns (6,) for 3 images; expected logits [batch, classes]",
        ),
        (lambda: Net(lambda self, x: self.net(x - x.mean(0)), net=flat()).eval(), INFLUENCE),
        (lambda: Net(lambda self, x: self.net(x.roll(1, 0)), net=flat()).eval(), INFLUENCE),
        (lambda: Net(lambda self, x: self.net(F.dropout(x, 0.5, training=True)), net=flat()).eval(), RANDOM),
        (lambda: Net(lambda self, x: F.dropout(self.net(x), 0.1, training=True), net=flat()).eval(), RANDOM),
        (lambda: Net(lambda self, x: self.net(x) + torch.randn(1), net=flat()).eval(), RANDOM),
        (lambda: training(nn.Sequential(nn.Dropout(0.1), *flat()).eval()), "0 is in training mode; call .eval() on the "
                                                                           "classifier first"),
    ],
)  # fmt: skip
def test_a_classifier_that_cannot_serve_is_one_clear_line(net, message):
    with pytest.raises(ClassifierError) as refused:
        squared_norms(net(), images(2))
    assert str(refused.value) == message


@pytest.mark.parametrize("name", ["0.weight", "0.bias", "1.running_var", "3.weight"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_named(name, value):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, CLASSES)).eval()
    with torch.no_grad():
        net.state_dict()[name].view(-1)[1] = value
    with pytest.raises(ClassifierError) as refused:
        squared_norms(net, images())
    assert str(refused.value) == (
        f"{name} holds values that are not finite: no image could be scored; "
        "its training diverged or its file is damaged, use other weights"
    )


def test_a_mask_of_infinities_is_no_fault():
    net = Net(lambda self, x: self.head((x.flatten(1) + self.mask).softmax(1)), head=nn.Linear(192, CLASSES)).eval()
    net.register_buffer("mask", torch.zeros(192).index_fill_(0, torch.arange(9), -math.inf))
    assert_exact(net, images())


@pytest.mark.parametrize("other", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("layer", "shown"),
    [
        (nn.Conv2d(3, 3, 3, padding=1), "0.0.weight, 0.0.bias"),
        (nn.BatchNorm2d(3), "0.0.weight, 0.0.bias"),
        (nn.GroupNorm(1, 3), "0.0.weight, 0.0.bias"),
        (nn.LayerNorm(8), "0.0.weight, 0.0.bias"),
        (nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), "0.0.0.weight, 0.0.0.bias, 0.0.1.weight, ..."),
    ],
)
def test_a_layer_of_another_type_is_named(layer, shown, other):
    net = nn.Sequential(nn.Sequential(copy.deepcopy(layer).to(other), nn.ReLU()), flat()).eval()
    with pytest.raises(ClassifierError) as refused:
        squared_norms(net, images())
    assert str(refused.value) == (
        f"mixed precision: {shown} of {str(other).removeprefix('torch.')} and images of float32; "
        "call .float() on the classifier, or cast where they meet"
    )


def test_images_of_another_type_than_the_classifier_are_told():
    with pytest.raises(ClassifierError) as refused:
        squared_norms(flat(), images().double())
    assert str(refused.value) == (
        "mixed precision: 1.weight, 1.bias of float32 and images of float64; "
        "call .double() on the classifier, or cast where they meet"
    )


def test_training_mode_is_refused_at_every_call():
    net = flat()
    engine = GradientEngine(net)
    engine(images(), ["all_hot"])
    net.train()
    with pytest.raises(ClassifierError, match=r"^the classifier itself is in training mode; call \.eval\(\)"):
        engine(images(), ["all_hot"])


@pytest.mark.parametrize(
    ("pixels", "found"),
    [
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "(2, 3, 8, 8) of uint8"),
        (torch.zeros(3, 8, 8), "(3, 8, 8) of float32"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), "(2, 3, 8, 8) of int64"),
    ],
)
def test_images_of_the_wrong_kind_are_one_clear_line(pixels, found):
    with pytest.raises(ClassifierError) as refused:
        squared_norms(flat(), pixels)
    assert str(refused.value) == f"expected floating-point images [B, C, H, W], found {found}"


def by_pixels(self, x):
    """Two paths of as many calls each."""
    first, second = (self.a, self.b) if x.mean() < 5 else (self.b, self.a)
    return self.head(second(first(x.flatten(1)).tanh()))


def by_batch_size(self, x):
    return self.head(torch.cat([self.a(part.flatten(1)) for part in x.split(3)]))


@pytest.mark.parametrize(("forward", "pixels"), [(by_pixels, images(2) + 50), (by_batch_size, images(5))])
def test_a_path_that_was_not_planned_is_refused_not_guessed(forward, pixels):
    net = Net(forward, a=nn.Linear(192, 192), b=nn.Linear(192, 192), head=nn.Linear(192, CLASSES)).eval()
    engine = GradientEngine(net)
    engine(images(2), ["all_hot"])
    with pytest.raises(ClassifierError) as refused:
        engine(pixels, ["all_hot"])
    assert str(refused.value) == ANOTHER_PATH


def test_a_classifier_that_goes_image_by_image_is_exact():
    net = Net(
        lambda self, x: torch.cat([self.head(one.flatten()[None]) for one in x]), head=nn.Linear(192, CLASSES)
    ).eval()
    assert_exact(net, images(5))


# --- Classifiers that return more than logits ---

Output = namedtuple("Output", ["logits", "features"])
OUTPUTS = {
    "tuple": (lambda x, z: (x, z), 1),
    "list": (lambda x, z: [x, None, z], 2),
    "dict": (lambda x, z: {"loss": None, "logits": z, "x": x}, "logits"),
    "namedtuple by name": (lambda x, z: Output(z, x), "logits"),
    "namedtuple by index": (lambda x, z: Output(z, x), 0),
    "object": (lambda x, z: SimpleNamespace(z=z, x=x), "z"),
    "tensor": (lambda x, z: z, "logits"),
}


def returning(output):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.PReLU(), nn.Flatten(), nn.Linear(144, CLASSES))
    return Net(lambda self, x: output(x, self.net(x)), net=net).eval()


@pytest.mark.parametrize("kind", OUTPUTS)
def test_the_logits_of_any_output_can_be_picked(kind):
    output, entry = OUTPUTS[kind]
    net = returning(output)
    pick_logits(net, entry)
    found = assert_exact_in_float64(net, images())
    assert found.names == tuple(name for name, _ in returning(output).named_parameters())
    assert_exact_in_float32(net, images())


@pytest.mark.parametrize(
    ("kind", "entry", "shown"),
    [
        ("tuple", 2, "tuple of 0, 1"),
        ("tuple", -1, "tuple of 0, 1"),
        ("list", 1, "list of 0, 2"),
        ("dict", "loss", "dict of logits, x"),
        ("namedtuple by name", "logit", "Output of logits, features, 0, 1"),
        ("object", "__class__", "SimpleNamespace of z, x"),
    ],
)
def test_an_entry_that_is_not_there_is_one_clear_line(kind, entry, shown):
    net = returning(OUTPUTS[kind][0])
    pick_logits(net, entry)
    with pytest.raises(ClassifierError) as refused:
        squared_norms(net, images())
    assert str(refused.value) == (
        f"classifier.logits: {entry} is none of the tensors that the classifier returns ({shown})"
    )


def test_a_picked_entry_is_checked_like_any_output():
    net = returning(OUTPUTS["tuple"][0])
    pick_logits(net, 0)
    with pytest.raises(ClassifierError, match=r"^the classifier returns \(3, 3, 8, 8\) for 3 images; expected logits"):
        squared_norms(net, images())


# --- What it needs ---

BLOCKER = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"pydantic", "ray", "boto3", "pyarrow", "click", "PIL", "torchvision", "sklearn"}:
            raise ImportError(f"{name} is refused")

sys.meta_path.insert(0, Refuse())
for name in ("pydantic", "torchvision"):
    try:
        __import__(name)
    except ImportError:
        continue
    sys.exit(f"{name} could be imported")

import torch
import gradosr.gradients, gradosr.representations, gradosr.detectors
net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)).eval()
norms = gradosr.gradients.squared_norms(net, torch.randn(2, 3, 2, 2))
print(gradosr.representations.log_norms([norms]).shape, gradosr.detectors.OneClassDetector.__name__)
"""


def test_gradients_representations_and_detectors_need_torch_alone():
    done = subprocess.run([sys.executable, "-c", BLOCKER], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "torch.Size([2, 2]) OneClassDetector\n"


def test_a_table_that_the_users_network_calls_a_cache_is_left_alone():
    net = Net(
        lambda self, x: self.head(self.conv(x).tanh().mean((2, 3)) * self.scale_cache["scale"]),
        conv=nn.Conv2d(3, 4, 3), head=nn.Linear(4, CLASSES),
    )  # fmt: skip
    net.scale_cache = {"scale": torch.tensor(2.0)}
    squared_norms(net.eval(), images())
    assert net.scale_cache.keys() == {"scale"}
