"""The kernels of a GPU, on a CPU by Triton's interpreter: sums, products and Grams are those of autograd.

Run by test_fused.py in a process of its own: Triton is told to interpret before it is imported. That the kernels run
on a GPU, and how fast, is for test_gpu.py and `gradosr bench gpu`.
"""

from dataclasses import replace

import pytest
import torch
from test_convolution import SHAPES, example
from torch import Tensor, nn
from torch.nn import functional as F

from gradosr.gradients import GradientEngine, convolution, fused, kernels, lay_channels_last
from gradosr.gradients.convolution import FUSED_GRAM, FUSED_PRODUCT, conv_gradients
from gradosr.gradients.geometry import Geometry, bind_conv, geometry_of
from gradosr.gradients.slow import slow_squared_norms

MORE_SHAPES = {
    **SHAPES,
    "wide": (32, 24, 1, (3, 3), (2, 1), (1, 1), (1, 1), 6, 9),
    "wide groups": (64, 48, 2, (3, 3), (1, 1), (1, 1), (1, 1), 6, 6),
    "more than a tile": (20, 130, 1, (1, 1), (1, 1), (0, 0), (1, 1), 9, 9),
    "large depthwise": (40, 40, 40, (7, 7), (1, 1), (3, 3), (1, 1), 8, 9),
    "flat depthwise": (20, 20, 20, (1, 5), (2, 1), (0, 2), (1, 1), 8, 9),
}
DEPTHWISE = [name for name, shape in MORE_SHAPES.items() if shape[0] == shape[1] == shape[2]]


def of_shape(name: str, maps: int, *, channels_last: bool) -> tuple[Geometry, Tensor, Tensor, Tensor, Tensor]:
    """Geometry, input, gradient, weight in float32, and the weight's gradients in float64."""
    SHAPES.setdefault(name, MORE_SHAPES[name])
    x, grad, weight, options = example(name, maps)
    call = bind_conv(2)(x.flatten(0, 1), weight, None, **options)
    gradients = conv_gradients(replace(call, form="library"), x, grad)["weight"]
    laid_out = [t.movedim(2, -1).contiguous().movedim(-1, 2) if channels_last else t for t in (x.float(), grad.float())]
    return geometry_of(call, x, grad), *laid_out, weight.float(), gradients


@pytest.mark.parametrize(("maps", "channels_last"), [(1, True), (2, False)])
@pytest.mark.parametrize("name", [name for name in MORE_SHAPES if name not in DEPTHWISE])
def test_products_and_grams_are_those_of_the_gradients(name: str, maps: int, channels_last: bool) -> None:
    geometry, x, grad, weight, gradients = of_shape(name, maps, channels_last=channels_last)
    squares_TBO, products_TBO = fused.products(geometry, x, grad, weight)
    rows = gradients.flatten(2)
    close(squares_TBO.sum(0), rows.square().sum(2))
    close(products_TBO.sum(0), (rows * weight.double().flatten(1)).sum(2))
    close(fused.gram(geometry, x, grad), rows.square().sum((1, 2)))
    close(fused.sums(grad), grad.double().flatten(3).sum((1, 3)))


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(("maps", "channels_last"), [(1, True), (2, False)])
@pytest.mark.parametrize("name", DEPTHWISE)
def test_gradients_of_a_depthwise_convolution_are_exact(name: str, maps: int, channels_last: bool) -> None:
    geometry, x, grad, _, gradients = of_shape(name, maps, channels_last=channels_last)
    close(fused.depthwise(geometry, x, grad), gradients.flatten(2))


@pytest.mark.parametrize("channels", [7, 64, 100])
def test_sums_of_a_batch_norm_are_those_of_its_definition(channels: int) -> None:
    x, grad = torch.randn(2, 3, 1, channels, 5, 6)
    mean = torch.randn(channels)
    products, sums = fused.centred_sums(grad, x, mean)
    close(products, ((x - mean.view(-1, 1, 1)) * grad).double().sum((1, 3, 4)))
    close(sums, grad.double().sum((1, 3, 4)))


@pytest.mark.parametrize("time_first", [False, True])
@pytest.mark.parametrize(("tokens", "channels"), [(17, 20), (1, 33), (300, 8)])
def test_sums_of_a_layer_norm_are_those_of_its_definition(tokens: int, channels: int, time_first: bool) -> None:
    x, grad = (torch.randn(tokens, 3, channels).transpose(0, 1) for _ in range(2))
    if not time_first:
        x, grad = x.contiguous(), grad.contiguous()
    products, sums = fused.normalised_sums(grad, x, 1e-5)
    close(products, (F.layer_norm(x, [channels]) * grad).double().sum(1))
    close(sums, grad.double().sum(1))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_bias_is_added(memory_format: torch.memory_format) -> None:
    output, bias = torch.randn(2, 20, 5, 3).contiguous(memory_format=memory_format), torch.randn(20)
    expected = output + bias.view(-1, 1, 1)
    torch.testing.assert_close(fused.add_bias(output, bias), expected, rtol=0, atol=0)


class Everything(nn.Module):
    """Folded and plain convolutions, tokens with several positions, normalisation of every fused kind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.folded = nn.Conv2d(3, 16, 3, stride=2, bias=False), nn.BatchNorm2d(16)
        self.few_places, self.alone = nn.Conv2d(16, 32, 3, stride=3), nn.BatchNorm2d(32)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.norm, self.tokens, self.head = nn.LayerNorm(32), nn.Linear(32, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.alone(self.few_places(self.folded(self.stem(x)).tanh())).tanh()
        y = self.norm(self.depthwise(y).flatten(2).transpose(1, 2))
        logits: Tensor = self.head(self.tokens(y).tanh().mean(1))
        return logits


def test_the_engine_is_exact_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (kernels, convolution):
        monkeypatch.setattr(module, "fused_kernels_of", lambda _device: fused)
    torch.manual_seed(0)
    net = Everything().eval()
    with torch.no_grad():
        for tensor in (*net.parameters(), net.folded.running_mean, net.alone.running_mean):
            tensor.add_(0.1 * torch.randn_like(tensor))
    lay_channels_last(net)
    pixels = torch.randn(3, 3, 16, 16)
    engine = GradientEngine(net)
    found = engine(pixels, ["all_hot"])[0].values_BP.double()
    (planned,) = engine._planned.values()
    used = {one.fastest for one in planned.kept.forms.measured.values()}
    assert {FUSED_PRODUCT, "depthwise"} <= used <= {FUSED_PRODUCT, FUSED_GRAM, "depthwise", None}
    assert planned.plan.folded
    twin = Everything().double().eval()
    twin.load_state_dict(net.state_dict())
    expected = slow_squared_norms(twin, pixels.double())
    assert ((found - expected).abs() <= 1e-4 * expected + 1e-6 * expected.amax(1, keepdim=True)).all()
