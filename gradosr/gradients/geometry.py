"""Sizes of a convolution and of its unfolded input. Legend in convolution.py."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from gradosr.errors import ClassifierError
from gradosr.gradients.calls import ELEMENTWISE, Call


@dataclass(frozen=True)
class Geometry:
    """Sizes of one group of a convolution; pairs are (height, width)."""

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
        """Output places of all maps, L."""
        return self.maps * self.out_size[0] * self.out_size[1]

    @property
    def patch(self) -> int:
        """Size of an unfolded patch, D."""
        return self.inputs * self.kernel[0] * self.kernel[1]

    @property
    def pointwise(self) -> bool:
        """True if the convolution is a linear layer applied at every place."""
        return self.kernel == (1, 1) and self.padding == (0, 0)

    @property
    def depthwise(self) -> bool:
        """True if each group has one input channel and one output channel."""
        return self.inputs == self.outputs == 1

    @property
    def unfolding(self) -> float:
        """Cost of building the patches, in multiply-adds."""
        return 0.0 if self.pointwise else self.places * self.patch * ELEMENTWISE

    @property
    def product(self) -> int:
        """Multiply-adds of the gradient, L D O."""
        return self.places * self.patch * self.outputs


def geometry_of(call: Call, x: Tensor, grad: Tensor) -> Geometry:
    """Return the sizes of a call, given its input [B, Q, channels, ...] and the gradient at its output."""

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
    """Return the weight, detached from autograd."""
    if call.weight is None:
        raise ClassifierError("a convolution without a weight")
    return call.weight.detach()


def bind_conv(dims: int) -> Callable[..., Call]:
    """Return the bind function of torch.nn.functional.conv1d (dims 1) or conv2d (dims 2)."""

    def bind(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | str | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> Call:
        kernel, dilation = weight.shape[2:], _per_axis(dilation, dims)
        x, padding = _explicit_padding(x, padding, kernel, dilation)
        options = {"stride": _per_axis(stride, dims), "padding": padding, "dilation": dilation, "groups": groups}
        return Call(x, weight, bias, feature_dims=dims + 1, options=options)

    return bind


def _per_axis(value: int | Sequence[int], dims: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * dims if len(values) == 1 else values


def _explicit_padding(
    x: Tensor, padding: int | str | Sequence[int], kernel: Sequence[int], dilation: Sequence[int]
) -> tuple[Tensor, list[int]]:
    """Return padding as numbers; "same" can be uneven, in which case x is padded here."""
    dims = len(kernel)
    if not isinstance(padding, str):
        return x, _per_axis(padding, dims)
    if padding == "valid":
        return x, [0] * dims
    total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    sides = [side for t in reversed(total) for side in (t // 2, t - t // 2)]
    return F.pad(x, sides), [0] * dims
