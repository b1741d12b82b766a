"""Norms of the last layers alone: the same values, from backward passes that end early."""

import pytest
import torch
from test_gradients import CLASSES, alive, double, images
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torchvision import models

from gradosr.gradients import GradientEngine, count_last
from gradosr.gradients.passes import Kept, Pass

OBJECTIVES = ("predicted", "max_logit")


class Tied(nn.Module):
    """Uses one linear layer early and late."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.last = nn.Linear(192, 16), nn.Linear(16, 16), nn.Linear(16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.twice(self.first(x.flatten(1)).tanh()).tanh()
        return self.last(self.twice(x).tanh())


def normed() -> nn.Module:
    return nn.Sequential(
        weight_norm(nn.Conv2d(3, 4, 3)), nn.Tanh(), weight_norm(nn.Conv2d(4, 4, 3)), nn.Tanh(), nn.Flatten(),
        nn.Linear(64, CLASSES),
    )  # fmt: skip


NETS = {
    "resnet18": lambda: models.resnet18(num_classes=CLASSES),
    "mobilenet_v3_small": lambda: models.mobilenet_v3_small(num_classes=CLASSES),
    "vit": lambda: models.VisionTransformer(8, 4, 3, 2, 16, 32, num_classes=CLASSES),
    "a layer used twice": Tied,
    "weights made of parameters": normed,
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.slow
@pytest.mark.parametrize("layers", [1e-9, 0.3, 0.8])
@pytest.mark.parametrize("name", NETS)
def test_the_norms_kept_are_those_of_all_layers(name: str, layers: float) -> None:
    net, pixels = double(alive(NETS[name]())), images(3, 32 if "net" in name else 8).double()
    whole, some = GradientEngine(net)(pixels, OBJECTIVES), GradientEngine(net, layers=layers)(pixels, OBJECTIVES)
    count = count_last(layers, len(whole[0].names))
    for all_of_it, last in zip(whole, some, strict=True):
        assert last.names == all_of_it.names[-count:]
        torch.testing.assert_close(last.values_BP, all_of_it.last(count).values_BP, rtol=1e-9, atol=1e-12)
        assert last.values_BP.any()
        torch.testing.assert_close(last.logits_BK, all_of_it.logits_BK)
        torch.testing.assert_close(last.middle_BM, all_of_it.middle_BM)
        torch.testing.assert_close(last.features_BF, all_of_it.features_BF)


def test_parameters_of_the_fallback_are_kept_or_left_out() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.early, self.middle = nn.Parameter(torch.randn(192, 8)), nn.Parameter(torch.randn(8, 8))
            self.late = nn.Parameter(torch.randn(8, CLASSES))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first = torch.einsum("bd,dk->bk", x.flatten(1), self.early).tanh()
            return torch.einsum("bk,kc->bc", torch.einsum("bk,kl->bl", first, self.middle).tanh(), self.late)

    net, pixels = Odd().eval().double(), images(2).double()
    engine = GradientEngine(net, layers=0.5)
    assert engine.plan(pixels).fallback in (("middle", "late"), ())
    whole = GradientEngine(net)(pixels, ["all_hot"])[0]
    torch.testing.assert_close(engine(pixels, ["all_hot"])[0].values_BP, whole.last(2).values_BP)


def test_the_backward_pass_ends_at_the_first_layer_asked_for() -> None:
    """It then keeps nothing of the layers before."""
    net, pixels = alive(NETS["resnet18"]()), images(2, 32)
    plans = {layers: GradientEngine(net, layers=layers).plan(pixels) for layers in (1.0, 0.3)}
    held = {layers: Pass(plan, net, Kept()).bytes_of(pixels) for layers, plan in plans.items()}
    assert held[0.3] < held[1.0] / 2


@pytest.mark.parametrize(("layers", "count"), [(1.0, 10), (0.5, 5), (0.01, 2), (0.96, 10), (0.94, 9)])
def test_at_least_two_tensors_are_kept(layers: float, count: int) -> None:
    assert count_last(layers, 10) == count
    assert count_last(layers, 0) == 0
