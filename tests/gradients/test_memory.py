"""A batch that is too large for the memory there is, or for the memory it may take."""

import gc
import subprocess
import sys
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from gradosr.errors import ClassifierError
from gradosr.gradients import GradientEngine
from gradosr.gradients.calls import CHUNK_BYTES
from gradosr.gradients.forms import Forms
from gradosr.gradients.passes import Kept, Pass


def net(width: int = 16) -> nn.Module:
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
    layers = [first, nn.BatchNorm2d(width), nn.ReLU(), second, nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(4 * width, 6)).eval()


def bytes_of(classifier: nn.Module, pixels: torch.Tensor) -> int:
    return Pass(GradientEngine(classifier).plan(pixels), classifier, Kept()).bytes_of(pixels)


def batch_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Images of every forward pass from now on."""
    sizes: list[int] = []
    forward = Pass.forward
    monkeypatch.setattr(Pass, "forward", lambda self, pixels: (sizes.append(len(pixels)), forward(self, pixels))[1])
    return sizes


@pytest.mark.parametrize(("images", "passes"), [(3, [3, 3, 1]), (100, [7]), (0, [1] * 7)])
def test_max_memory_splits_a_batch(images: int, passes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    classifier, pixels = net(), torch.randn(7, 3, 32, 32)
    expected = GradientEngine(classifier)(pixels, ["all_hot", "predicted"])
    engine = GradientEngine(classifier, max_memory=CHUNK_BYTES + images * bytes_of(classifier, pixels[:1]))
    engine(pixels[:1], ["all_hot"])
    sizes = batch_sizes(monkeypatch)
    for found, whole in zip(engine(pixels, ["all_hot", "predicted"]), expected, strict=True):
        torch.testing.assert_close(found.values_BP, whole.values_BP)
        torch.testing.assert_close(found.logits_BK, whole.logits_BK)
        torch.testing.assert_close(found.features_BF, whole.features_BF)
    assert sizes == passes


def test_the_bytes_of_a_batch_are_those_of_its_images() -> None:
    classifier, pixels = net(), torch.randn(8, 3, 32, 32)
    each = bytes_of(classifier, pixels[:1])
    assert bytes_of(classifier, pixels) == pytest.approx(8 * each, rel=0.01)
    maps = 16 * 32 * 32 * 4  # of two convolutions and what follows each
    assert 2 * maps < each < 6 * maps


SHORT_OF_MEMORY = """
import logging, resource, torch
from test_memory import net
from gradosr.gradients import GradientEngine
logging.basicConfig(format="%(message)s")
torch.set_num_threads(1)
pixels = torch.randn({images}, 3, {size}, {size})
engine = GradientEngine(net({width}))
engine(pixels[:1], ["all_hot"])
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + ({megabytes} << 20), resource.RLIM_INFINITY))
found = [engine(pixels, ["all_hot"])[0].values_BP for _ in range(2)]
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
torch.testing.assert_close(found[0], GradientEngine(net({width}))(pixels, ["all_hot"])[0].values_BP)
torch.testing.assert_close(*found)
"""


def short_of_memory(width: int, images: int, size: int, megabytes: int) -> "subprocess.CompletedProcess[str]":
    program = SHORT_OF_MEMORY.format(width=width, images=images, size=size, megabytes=megabytes)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits address space as Linux does")
def test_out_of_memory_halves_the_batch_and_says_so_once() -> None:
    done = short_of_memory(width=16, images=64, size=128, megabytes=150)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == ["out of memory with 64 images of 128x128: going on with half as many at once"]


@pytest.mark.skipif(sys.platform != "linux", reason="limits address space as Linux does")
@pytest.mark.slow
def test_one_image_that_does_not_fit_is_one_clear_line() -> None:
    done = short_of_memory(width=4, images=2, size=1024, megabytes=20)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "gradosr.errors.ClassifierError: out of memory on cpu for a single image of 1024x1024"
    )


def test_other_errors_of_a_pass_are_not_taken_for_a_lack_of_memory() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.failing = net(), False

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.failing:
                raise RuntimeError("of its own")
            return self.inner(x)

    classifier = Fails().eval()
    engine, pixels = GradientEngine(classifier), torch.randn(2, 3, 8, 8)
    engine(pixels, ["all_hot"])
    classifier.failing = True
    with pytest.raises(RuntimeError, match="of its own") as failed:
        engine(pixels, ["all_hot"])
    assert not isinstance(failed.value, ClassifierError)


@pytest.mark.slow
def test_a_pass_that_fails_gives_back_what_it_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its records hold tensors whose graph holds its hooks: a cycle that Python's garbage collector cannot see."""
    passes: list[weakref.ref[Pass]] = []
    enter, choose = Pass.forward, Forms.fastest

    def forward(self: Pass, images_BCHW: torch.Tensor) -> torch.Tensor:
        passes.append(weakref.ref(self))
        return enter(self, images_BCHW)

    def fastest(self: Forms, number: int, forms: Any, norms: Any, grad: torch.Tensor) -> Any:
        if len(grad) > 4:  # more than planning looks at
            raise RuntimeError("can't allocate memory")
        return choose(self, number, forms, norms, grad)

    classifier, pixels = net(), torch.randn(8, 3, 16, 16)
    expected = GradientEngine(classifier)(pixels, ["all_hot"])[0].values_BP
    monkeypatch.setattr(Pass, "forward", forward)
    monkeypatch.setattr(Forms, "fastest", fastest)
    for _ in range(50):  # each engine learns of the bound anew
        found = GradientEngine(classifier, max_memory=1 << 30)(pixels, ["all_hot"])[0].values_BP
        torch.testing.assert_close(found, expected)
    assert len(passes) > 150
    del found
    gc.collect()
    assert [one() for one in passes if one() is not None] == []
