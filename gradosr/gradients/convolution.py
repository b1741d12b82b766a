"""Convolutions: four exact forms of a per-sample squared norm, the cheapest one chosen by counted work.

Legend: N samples (groups are folded into them), C input channels, O output channels, H W input places,
I J output places, L = I * J, D = C * kernel. With A [D, L] the unfolded input and g [O, L]:

    per sample      ||g A^T||^2 by the library's own weight-gradient kernel, one sample at a time:  L D O
    unfolded Gram   sum((A^T A) * (g^T g)):                                                         L^2 (D + O)
    shifted Gram    stride 1: A^T A is a sum of shifted pieces of x^T x, so nothing is unfolded:    L^2 (C + O)
    depthwise       one channel in, one out: a product and a sum per place of the kernel:           L D
    pointwise       a 1 x 1 kernel is a linear layer over places
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from gradosr.errors import ClassifierError
from gradosr.gradients.calls import (
    ELEMENTWISE,
    Call,
    Gradients,
    channel_sums,
    chunks,
    dot,
    gram_squared_norm,
    product_squared_norm,
    squared_norm,
)

LIBRARY_CALL = 5e5
"""Multiply-adds in the time that one more call of a library kernel costs."""


def bind_conv(dims: int) -> Callable[..., Call]:
    """Of torch.nn.functional.conv1d or conv2d."""

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
    """Padding as numbers; "same" can be uneven, then x is padded here."""
    dims = len(kernel)
    if not isinstance(padding, str):
        return x, _per_axis(padding, dims)
    if padding == "valid":
        return x, [0] * dims
    total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    sides = [side for t in reversed(total) for side in (t // 2, t - t // 2)]
    return F.pad(x, sides), [0] * dims


def conv_gradients(call: Call, x: Tensor, grad: Tensor) -> Gradients:
    """Weight [B, O, C/groups, *kernel], bias [B, O]; the library's own weight-gradient kernel per sample."""
    if call.weight is None:
        raise ClassifierError("a convolution without a weight")
    rows = [_conv_weight_gradient(call, x[b], grad[b], call.weight) for b in range(x.shape[0])]
    gradients = {"weight": torch.stack(rows)}
    return gradients | ({} if call.bias is None else {"bias": channel_sums(grad, 2)})


def _conv_weight_gradient(call: Call, x_QC: Tensor, grad_QO: Tensor, weight: Tensor) -> Tensor:
    options = call.options
    geometry = (options["stride"], options["padding"], options["dilation"])
    wanted = [False, True, False]
    gradient: Tensor = torch.ops.aten.convolution_backward(
        grad_QO, x_QC, weight, None, *geometry, False, [0] * len(options["stride"]), options["groups"], wanted
    )[1]
    return gradient


def conv_squared_norms(call: Call, x: Tensor, grad: Tensor) -> Gradients:
    """Squared norms of weight and bias, each [B]."""
    if call.weight is None:
        raise ClassifierError("a convolution without a weight")
    norms = {"weight": _weight_squared_norm(call, x, grad, call.weight)}
    return norms | ({} if call.bias is None else {"bias": squared_norm(channel_sums(grad, 2))})


def _weight_squared_norm(call: Call, x: Tensor, grad: Tensor, weight: Tensor) -> Tensor:
    groups, geometry = call.options["groups"], _geometry(call, x, grad, weight)
    fitting = {name: form for name, form in FORMS.items() if form.fits(geometry)}
    name = min(fitting, key=lambda name: fitting[name].cost(geometry), default=None)
    library = groups * geometry.places * geometry.patch * geometry.outputs + LIBRARY_CALL
    if name is None or groups * fitting[name].cost(geometry) > library:
        rows = [_conv_weight_gradient(call, x[b], grad[b], weight).flatten() for b in range(len(x))]
        return torch.stack([dot(row, row) for row in rows])
    form, bytes_each = fitting[name], groups * fitting[name].floats(geometry) * x.element_size()
    pieces = [
        form.norms(geometry, _folded(x[piece], groups), _folded(grad[piece], groups))
        for piece in chunks(len(x), bytes_each)
    ]
    per_group: Tensor = torch.cat(pieces)
    return per_group.view(len(x), groups).sum(1)


def _folded(tensor: Tensor, groups: int) -> Tensor:
    """[B, Q, groups * channels, ...] as [B * groups, Q, channels, height, width]; 1-D maps get a height of one."""
    if tensor.dim() == 4:
        tensor = tensor.unsqueeze(3)
    batch, maps, channels, height, width = tensor.shape
    return (
        tensor.reshape(batch, maps, groups, channels // groups, height, width)
        .transpose(1, 2)
        .reshape(batch * groups, maps, channels // groups, height, width)
    )


@dataclass(frozen=True)
class Geometry:
    """Sizes of one group of a convolution, as (height, width) where there are two."""

    maps: int
    inputs: int
    outputs: int
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


def _geometry(call: Call, x: Tensor, grad: Tensor, weight: Tensor) -> Geometry:
    def pair(values: Sequence[int], missing: int) -> tuple[int, int]:
        return (values[0], values[1]) if len(values) == 2 else (missing, values[0])

    o = call.options
    return Geometry(
        maps=x.shape[1],
        inputs=weight.shape[1],
        outputs=weight.shape[0] // o["groups"],
        size=pair(x.shape[3:], 1),
        out_size=pair(grad.shape[3:], 1),
        kernel=pair(weight.shape[2:], 1),
        stride=pair(o["stride"], 1),
        padding=pair(o["padding"], 0),
        dilation=pair(o["dilation"], 1),
    )


def _places_last(tensor_NQCHW: Tensor) -> Tensor:
    """[N, Q * H * W, C]; a view for one map."""
    return tensor_NQCHW.flatten(3).transpose(2, 3).flatten(1, 2)


def _pointwise(geometry: Geometry, x_NQCHW: Tensor, grad_NQOIJ: Tensor) -> Tensor:
    x_NQCIJ = x_NQCHW[..., :: geometry.stride[0], :: geometry.stride[1]]
    return product_squared_norm(_places_last(x_NQCIJ), _places_last(grad_NQOIJ))


def _depthwise(geometry: Geometry, x_NQCHW: Tensor, grad_NQOIJ: Tensor) -> Tensor:
    (top, left), (rows, columns) = geometry.padding, geometry.out_size
    padded = F.pad(x_NQCHW, (left, left, top, top))
    total_N = x_NQCHW.new_zeros(len(x_NQCHW))
    for a, b in itertools.product(range(geometry.kernel[0]), range(geometry.kernel[1])):
        i, j = a * geometry.dilation[0], b * geometry.dilation[1]
        window = padded[..., i :: geometry.stride[0], j :: geometry.stride[1]][..., :rows, :columns]
        total_N += squared_norm((window * grad_NQOIJ).sum((1, 3, 4)))
    return total_N


def _unfolded_gram(geometry: Geometry, x_NQCHW: Tensor, grad_NQOIJ: Tensor) -> Tensor:
    g = geometry
    patches = F.unfold(x_NQCHW.flatten(0, 1), g.kernel, g.dilation, g.padding, g.stride)
    patches_NLD = patches.unflatten(0, (-1, g.maps)).transpose(2, 3).flatten(1, 2)
    return gram_squared_norm(patches_NLD, _places_last(grad_NQOIJ))


def _shifted_gram(geometry: Geometry, x_N1CHW: Tensor, grad_N1OIJ: Tensor) -> Tensor:
    g, (height, width), (rows, columns) = geometry, geometry.size, geometry.out_size
    x_NCL, grad_NOL = x_N1CHW.squeeze(1).flatten(2), grad_N1OIJ.squeeze(1).flatten(2)
    gram = torch.bmm(x_NCL.transpose(1, 2), x_NCL).view(-1, height, width, height, width)
    # Patches of two output places overlap in the same places of the kernel: their product is the sum of x^T x
    # over all shifts of both at once. Rows and columns shift on their own, so one axis is summed after the other.
    by_rows = gram.new_zeros(len(gram), rows, width, rows, width)
    for out, into in _shifts(g.kernel[0], g.dilation[0], g.padding[0], height, rows):
        by_rows[:, out, :, out] += gram[:, into, :, into]
    both = gram.new_zeros(len(gram), rows, columns, rows, columns)
    for out, into in _shifts(g.kernel[1], g.dilation[1], g.padding[1], width, columns):
        both[:, :, out, :, out] += by_rows[:, :, into, :, into]
    gram_grad = torch.bmm(grad_NOL.transpose(1, 2), grad_NOL)
    return dot(both.flatten(1), gram_grad.flatten(1)).clamp_min(0)


def _shifts(kernel: int, dilation: int, padding: int, size: int, out_size: int) -> Iterator[tuple[slice, slice]]:
    """For each place of the kernel: the output places that read inside the input there, and the input they read."""
    for place in range(kernel):
        shift = place * dilation - padding
        low, high = max(0, -shift), min(out_size, size - shift)
        if low < high:
            yield slice(low, high), slice(low + shift, high + shift)


class Form(NamedTuple):
    """One exact way to the squared norm of the weight's gradient."""

    fits: Callable[[Geometry], bool]
    cost: Callable[[Geometry], float]
    """Multiply-adds per sample and group; memory-bound work counted as ELEMENTWISE of them."""
    floats: Callable[[Geometry], int]
    """Numbers held at once per sample and group."""
    norms: Callable[[Geometry, Tensor, Tensor], Tensor]
    """(geometry, x [N, Q, C, H, W], grad [N, Q, O, I, J]) -> [N]."""


FORMS: dict[str, Form] = {
    "pointwise": Form(
        fits=lambda g: g.kernel == (1, 1) and g.padding == (0, 0),
        # A batched product over many places reaches two thirds of the library kernel's speed.
        cost=lambda g: g.places * min(1.6 * g.inputs * g.outputs, g.places * (g.inputs + g.outputs + ELEMENTWISE)),
        floats=lambda _: 1,  # chunked by product_squared_norm itself
        norms=_pointwise,
    ),
    "depthwise": Form(
        # The library has a fast kernel of its own for 3 x 3 (1.2 to 3 times faster); at 5 x 5 it takes up to 3 times as
        # long as this, so its counted work says nothing and this form is always taken.
        fits=lambda g: g.inputs == g.outputs == 1 and g.patch > 9,
        cost=lambda _: 0.0,
        floats=lambda g: 2 * g.places,
        norms=_depthwise,
    ),
    "shifted Gram": Form(
        fits=lambda g: g.maps == 1 and g.stride == (1, 1),
        cost=lambda g: (
            (g.size[0] * g.size[1]) ** 2 * g.inputs + g.places**2 * (g.outputs + ELEMENTWISE * (sum(g.kernel) + 2))
        ),
        floats=lambda g: 3 * max(g.places, g.size[0] * g.size[1]) ** 2,
        norms=_shifted_gram,
    ),
    "unfolded Gram": Form(
        fits=lambda _: True,
        cost=lambda g: g.places**2 * (g.patch + g.outputs + ELEMENTWISE) + g.places * g.patch * ELEMENTWISE,
        floats=lambda g: g.places * (g.patch + 2 * g.places),
        norms=_unfolded_gram,
    ),
}
"""Beside them, for every convolution: the library's own weight-gradient kernel, sample by sample."""
