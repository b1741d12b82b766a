"""Sizes of a convolution, and how its input unfolds. Legend in convolution.py."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from gradosr.errors import ClassifierError
from gradosr.gradients.calls import ELEMENTWISE, Call


@dataclass(frozen=True)
class Geometry:
    """Sizes of one group of a convolution, as (height, width) where there are two."""

    maps: int
    inputs: int
    outputs: int
    groups: int
    size: tuple[int, int]
    out_size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def places(self) -> int:
        """Output places of all maps: L."""
        return self.maps * self.out_size[0] * self.out_size[1]

    @property
    def patch(self) -> int:
        """Size of an unfolded patch: D."""
        return self.inputs * self.kernel[0] * self.kernel[1]

    @property
    def pointwise(self) -> bool:
        """A linear layer over places."""
        return self.kernel == (1, 1) and self.padding == (0, 0)

    @property
    def depthwise(self) -> bool:
        """One channel in and one out per group."""
        return self.inputs == self.outputs == 1

    @property
    def unfolding(self) -> float:
        """Cost of the patches."""
        return 0.0 if self.pointwise else self.places * self.patch * ELEMENTWISE

    @property
    def product(self) -> int:
        """Multiply-adds of the gradient: L D O."""
        return self.places * self.patch * self.outputs


def geometry_of(call: Call, x: Tensor, grad: Tensor) -> Geometry:
    """Sizes of a call, its input [B, Q, channels, ...] and the gradient at its output."""

    def pair(values: Sequence[int], missing: int) -> tuple[int, int]:
        return (values[0], values[1]) if len(values) == 2 else (missing, values[0])

    o, weight = call.options, weight_of(call)
    return Geometry(
        maps=x.shape[1],
        inputs=weight.shape[1],
        outputs=weight.shape[0] // o["groups"],
        groups=o["groups"],
        size=pair(x.shape[3:], 1),
        out_size=pair(grad.shape[3:], 1),
        kernel=pair(weight.shape[2:], 1),
        stride=pair(o["stride"], 1),
        padding=pair(o["padding"], 0),
        dilation=pair(o["dilation"], 1),
    )


def weight_of(call: Call) -> Tensor:
    """The weight, without its gradient."""
    if call.weight is None:
        raise ClassifierError("a convolution without a weight")
    return call.weight.detach()
