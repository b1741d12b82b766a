"""A BatchNorm that is part of the convolution before it, and one that may not be."""

import pytest
import torch
from torch import nn

from gradosr.gradients import GradientEngine, squared_norms
from gradosr.gradients.slow import slow_squared_norms


class Net(nn.Module):
    """Two convolutions large enough for folding to pay, with what stands between them given."""

    def __init__(self, norm: nn.Module, *, bias: bool = False, read_twice: bool = False, in_place: bool = True) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=bias), norm
        self.activation = nn.ReLU(inplace=in_place)
        self.conv, self.last = nn.Conv2d(8, 8, 3, padding=1, stride=2, bias=bias), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 6)
        self.read_twice = read_twice

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x)
        z = self.activation(self.norm(y))
        if self.read_twice:
            z = z + y.sigmoid()
        return self.head(self.last(self.conv(z)).relu().mean((2, 3)))


def settled(net: nn.Module) -> nn.Module:
    """Statistics, scales and shifts unlike the initial ones."""
    torch.manual_seed(1)
    with torch.no_grad():
        for norm in (module for module in net.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            for parameter in norm.parameters():
                parameter.normal_(1, 0.5)
    return net.eval()


def images(batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 3, 16, 12, generator=torch.Generator().manual_seed(0))


def folded(net: nn.Module, pixels: torch.Tensor) -> set[str]:
    """Convolutions with a BatchNorm in them."""
    uses = GradientEngine(net).plan(pixels).uses.values()
    return {use.names["weight"] for use in uses if use.fold}


def assert_exact(net: nn.Module) -> None:
    pixels = images()
    for dtype, bound in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        twin = slow_squared_norms(net.double(), pixels.double())
        found = squared_norms(net.to(dtype), pixels.to(dtype))
        off = (found.values_BP.double() - twin).abs() / (bound * twin + 1e-2 * bound * twin.amax(1, keepdim=True))
        assert off.max() <= 1, dict(zip(found.names, off.amax(0).tolist(), strict=True))
        torch.testing.assert_close(found.logits_BK, net(pixels.to(dtype)))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_a_folded_batch_norm_is_exact(bias: bool, affine: bool) -> None:
    net = settled(Net(nn.BatchNorm2d(8, affine=affine), bias=bias))
    # Without scale and shift there is nothing to find: the call serves no parameter.
    assert folded(net, images()) == ({"stem.weight", "conv.weight"} if affine else {"conv.weight"})
    assert_exact(net)


def test_a_scale_of_zero_still_has_its_gradient() -> None:
    """Residual branches start at zero."""
    net = settled(Net(nn.BatchNorm2d(8)))
    nn.init.zeros_(net.norm.weight)
    assert "stem.weight" in folded(net, images())
    assert_exact(net)


def test_a_convolution_read_by_others_stays_what_it_is() -> None:
    net = settled(Net(nn.BatchNorm2d(8), read_twice=True, in_place=False))
    assert folded(net, images()) == {"conv.weight"}
    assert_exact(net)


def test_an_input_far_off_its_mean_is_not_folded() -> None:
    """Folding would cancel the digits that tell it from its mean."""
    net = settled(Net(nn.BatchNorm2d(8)))
    net.norm.running_mean[3] = 1e4
    assert folded(net, images()) == {"conv.weight"}


def test_shared_layers_are_not_folded() -> None:
    net = settled(Net(nn.BatchNorm2d(8)))
    net.last = net.norm
    assert folded(net, images()) == set()
    assert_exact(net)


@pytest.mark.parametrize("tensor", ["stem.weight", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"])
def test_weights_and_statistics_may_change_between_calls(tensor: str) -> None:
    net = settled(Net(nn.BatchNorm2d(8)))
    engine, pixels = GradientEngine(net), images()
    before = engine(pixels, ["all_hot"])[0].values_BP
    with torch.no_grad():
        net.state_dict(keep_vars=True)[tensor].add_(0.3)
    after = engine(pixels, ["all_hot"])[0].values_BP
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, squared_norms(net, pixels).values_BP)


def test_a_gradient_laid_out_otherwise_than_the_input_is_read_right() -> None:
    """A stem whose output becomes tokens; torch's own kernel returns wrong gradients there, for a batch of one too."""

    class Stem(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tokens = self.norm(self.conv(x)).flatten(2).transpose(1, 2)
            return self.head((tokens.softmax(1) * tokens).sum(1))

    net, pixels = settled(Stem()).double(), images(1).double()
    by_differences = []
    for channel in range(4):
        losses = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                net.norm.bias[channel] += step
                losses.append(nn.functional.softplus(-net(pixels)).mean())
                net.norm.bias[channel] -= step
        by_differences.append((losses[0] - losses[1]) / 2e-6)
    expected = torch.stack(by_differences).square().sum()
    for found in (squared_norms(net, pixels).values_BP, slow_squared_norms(net, pixels)):
        torch.testing.assert_close(found[0, 3], expected, rtol=1e-5, atol=0)
