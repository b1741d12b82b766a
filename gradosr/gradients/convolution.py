"""Convolutions: exact forms of the per-sample gradient and of its squared norm.

Legend: N samples (groups are folded into them), C input channels, O output channels, H W input places,
I J output places, L = I * J, D = C * kernel. With A [D, L] the unfolded input
and g [O, L], the gradient is g A^T, made in L D O multiply-adds:

    library            the library's own weight-gradient kernel, one sample at a time
    depthwise          one channel in: a product and a sum per place of the kernel
    unfolded product   A made (a view where the kernel is 1 x 1), one batched product

and where the norm alone is wanted, without making the gradient:

    unfolded Gram      sum((A^T A) * (g^T g)): L^2 (D + O)
    shifted Gram       stride 1: A^T A is a sum of shifted pieces of x^T x, so nothing is unfolded: L^2 (C + O)

On a GPU that runs the fused kernels (fused.py), these take the place of all but the depthwise form:

    fused product      G a tile at a time, squared where it is made
    fused Gram         the two Gram matrices a tile at a time, multiplied where they are made
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from gradosr.errors import ClassifierError
from gradosr.gradients.calls import (
    CHUNK_BYTES,
    ELEMENTWISE,
    Call,
    Gradients,
    accumulator,
    channel_sums,
    chunks,
    dot,
    gram_squared_norm,
    plausible,
    squared_norm,
)
from gradosr.gradients.geometry import Geometry, geometry_of, weight_of
from gradosr.gradients.kernels import fused_kernels, fused_kernels_of

FUSED_PRODUCT, FUSED_GRAM = "fused product", "fused Gram"
SERIAL = 8
"""Samples of a batch on a GPU beyond which a kernel per sample is not tried."""
PASS_ON_A_GPU = 150
"""Multiply-adds of a fused product that take the time of one element read and written. Measured on an H200."""
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


def _by_group(tensor: Tensor, groups: int) -> Tensor:
    """[B, Q, groups * channels, ...] as [B * groups, Q, channels, height, width]; 1-D maps get a height of one."""
    if tensor.dim() == 4:
        tensor = tensor.unsqueeze(3)
    batch, maps, channels, height, width = tensor.shape
    return (
        tensor.reshape(batch, maps, groups, channels // groups, height, width)
        .transpose(1, 2)
        .reshape(batch * groups, maps, channels // groups, height, width)
    )


def _places_last(tensor_NQCHW: Tensor) -> Tensor:
    """[N, Q * H * W, C]; a view for one map."""
    return tensor_NQCHW.flatten(3).transpose(2, 3).flatten(1, 2)


def _library(call: Call, _geometry: Geometry, x: Tensor, grad: Tensor) -> Tensor:
    o, weight, wanted = call.options, weight_of(call), [False, True, False]
    geometry = (o["stride"], o["padding"], o["dilation"], False, [0] * len(o["stride"]), o["groups"])
    rows = [
        torch.ops.aten.convolution_backward(grad_QO, x_QC, weight, None, *geometry, wanted)[1]
        for x_QC, grad_QO in zip(x, grad, strict=True)
    ]
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def _depthwise(_call: Call, geometry: Geometry, x: Tensor, grad: Tensor) -> Tensor:
    kernels = fused_kernels(x)
    if kernels and geometry.kernel[1] <= kernels.DEPTHWISE_WIDTH:
        fused: Tensor = kernels.depthwise(geometry, x, grad)
        return fused
    (top, left), (rows, columns) = geometry.padding, geometry.out_size
    # Channels last: a place of the kernel is a product and a sum over whole rows of channels, however short the lines.
    x_NCHW, grad_NCIJ = (_maps(t).contiguous(memory_format=torch.channels_last) for t in (x, grad))
    padded, product = F.pad(x_NCHW, (left, left, top, top)), torch.empty_like(grad_NCIJ)
    per_place = []
    for a, b in itertools.product(range(geometry.kernel[0]), range(geometry.kernel[1])):
        i, j = a * geometry.dilation[0], b * geometry.dilation[1]
        window = padded[..., i :: geometry.stride[0], j :: geometry.stride[1]][..., :rows, :columns]
        per_place.append(torch.mul(window, grad_NCIJ, out=product).sum((2, 3), dtype=accumulator(x.dtype)))
    per_map: Tensor = torch.stack(per_place, 2)
    return per_map.view(-1, geometry.maps, *per_map.shape[1:]).sum(1)


def _maps(tensor: Tensor) -> Tensor:
    """[B, Q, C, ...] as [B * Q, C, height, width]."""
    return (tensor if tensor.dim() == 5 else tensor.unsqueeze(3)).flatten(0, 1)


def _unfolded(geometry: Geometry, x: Tensor) -> Tensor:
    """Patches [N, Q * L, D]; of a pointwise convolution a view."""
    g, x_NQCHW = geometry, _by_group(x, geometry.groups)
    if g.pointwise:
        return _places_last(x_NQCHW[..., :: g.stride[0], :: g.stride[1]])
    x_NCHW = x_NQCHW.flatten(0, 1)
    if x.is_cuda:
        patches = _strided_patches(geometry, x_NCHW)
    else:
        patches = F.unfold(x_NCHW, g.kernel, g.dilation, g.padding, g.stride)
    return patches.view(-1, g.maps, *patches.shape[1:]).transpose(2, 3).flatten(1, 2)


def _strided_patches(geometry: Geometry, x_NCHW: Tensor) -> Tensor:
    """As F.unfold, in one kernel: on a GPU F.unfold launches one per sample."""
    g, (top, left) = geometry, geometry.padding
    padded = F.pad(x_NCHW, (left, left, top, top))
    n, c, h, w = padded.stride()
    size = (*padded.shape[:2], *g.kernel, *g.out_size)
    steps = (n, c, h * g.dilation[0], w * g.dilation[1], h * g.stride[0], w * g.stride[1])
    return padded.as_strided(size, steps).reshape(len(x_NCHW), g.patch, -1)


def _unfolded_product(_call: Call, geometry: Geometry, x: Tensor, grad: Tensor) -> Tensor:
    grad_NLO = _places_last(_by_group(grad, geometry.groups))
    return torch.bmm(grad_NLO.transpose(1, 2), _unfolded(geometry, x))


def _unfolded_gram(_call: Call, geometry: Geometry, x: Tensor, grad: Tensor) -> Tensor:
    return gram_squared_norm(_unfolded(geometry, x), _places_last(_by_group(grad, geometry.groups)))


def _shifted_gram(_call: Call, geometry: Geometry, x: Tensor, grad: Tensor) -> Tensor:
    g, (height, width), (rows, columns) = geometry, geometry.size, geometry.out_size
    x_NCL = _by_group(x, g.groups).squeeze(1).flatten(2)
    grad_NOL = _by_group(grad, g.groups).squeeze(1).flatten(2)
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
    """One exact way."""

    fits: Callable[[Geometry], bool]
    cost: Callable[[Geometry], float]
    """Multiply-adds per sample; memory-bound work counted as ELEMENTWISE of them."""
    floats: Callable[[Geometry], int]
    """Numbers held at once per sample and group."""
    run: Callable[[Call, Geometry, Tensor, Tensor], Tensor]
    """(call, geometry, x [B, Q, channels, ...], grad) -> the gradients, B * O * D numbers; of a Gram: the squared
    norms [B * groups]."""


MATERIALISED: dict[str, Form] = {
    "library": Form(
        fits=lambda _: True,
        # A product over a single channel runs nowhere near a full one.
        cost=lambda g: g.groups * g.product * (ELEMENTWISE / 4 if g.inputs == 1 else 1) + LIBRARY_CALL,
        floats=lambda _: CHUNK_BYTES,  # one at a time: a gradient is read back while the cache holds it
        run=_library,
    ),
    "depthwise": Form(
        fits=lambda g: g.depthwise,
        cost=lambda g: g.groups * g.product * ELEMENTWISE / 4,
        floats=lambda g: 3 * g.places,
        run=_depthwise,
    ),
    "unfolded product": Form(
        fits=lambda _: True,
        # A batched product over many places reaches two thirds of the library kernel's speed.
        cost=lambda g: g.groups * (1.6 * g.product + g.unfolding),
        floats=lambda g: g.patch * (g.places + g.outputs),
        run=_unfolded_product,
    ),
}
GRAMS: dict[str, Form] = {
    "shifted Gram": Form(
        fits=lambda g: g.maps == 1 and g.stride == (1, 1),
        cost=lambda g: (
            g.groups
            * ((g.size[0] * g.size[1]) ** 2 * g.inputs + g.places**2 * (g.outputs + ELEMENTWISE * (sum(g.kernel) + 2)))
        ),
        floats=lambda g: 3 * max(g.places, g.size[0] * g.size[1]) ** 2,
        run=_shifted_gram,
    ),
    "unfolded Gram": Form(
        fits=lambda _: True,
        # Of the symmetric products, half.
        cost=lambda g: g.groups * (g.places**2 * (g.patch + g.outputs + ELEMENTWISE) / 2 + g.unfolding),
        floats=lambda g: g.places * (g.patch + 2 * g.places),
        run=_unfolded_gram,
    ),
}


def _pieces(form: Form, call: Call, geometry: Geometry, x: Tensor, grad: Tensor) -> Iterator[Tensor]:
    for piece in chunks(len(x), geometry.groups * form.floats(geometry) * x.element_size()):
        yield form.run(call, geometry, x[piece], grad[piece])


def _costs(forms: Mapping[str, Form], geometry: Geometry) -> dict[str, float]:
    return {name: form.cost(geometry) for name, form in forms.items() if form.fits(geometry)}


def conv_forms(call: Call, x: Tensor, grad: Tensor, *, materialised: bool) -> list[str]:
    """Names of the forms worth trying, by counted work; `materialised`: of those alone that see every row of G."""
    geometry = geometry_of(call, x, grad)
    if fused_kernels(x):
        if geometry.depthwise:
            return ["depthwise"]
        return [FUSED_PRODUCT] if materialised else fused_forms(geometry, x)
    costs = _costs(MATERIALISED if materialised else {**MATERIALISED, **GRAMS}, geometry)
    if x.is_cuda and len(x) > SERIAL:
        del costs["library"]
    return plausible(costs)


def fused_forms(geometry: Geometry, x: Tensor) -> list[str]:
    """Names of the fused forms worth trying, by counted work; none where no fused kernels run."""
    kernels = fused_kernels(x)
    if kernels is None:
        return []
    return plausible({FUSED_PRODUCT: kernels.product_cost(geometry), FUSED_GRAM: kernels.gram_cost(geometry)})


def weight_gradients(call: Call, x: Tensor, grad: Tensor) -> Iterator[Tensor]:
    """The weight's gradients as [n, O, D], piece by piece of the batch."""
    geometry = geometry_of(call, x, grad)
    form = MATERIALISED[call.form or plausible(_costs(MATERIALISED, geometry))[0]]
    for piece in _pieces(form, call, geometry, x, grad):
        yield piece.reshape(-1, geometry.groups * geometry.outputs, geometry.patch)  # channels-last rows are copied


def conv_gradients(call: Call, x: Tensor, grad: Tensor) -> Gradients:
    """Weight [B, O, C/groups, *kernel], bias [B, O]."""
    weight = torch.cat(list(weight_gradients(call, x, grad)))
    gradients = {"weight": weight.view(-1, *weight_of(call).shape)}
    return gradients | ({} if call.bias is None else {"bias": channel_sums(grad, 2)})


def conv_squared_norms(call: Call, x: Tensor, grad: Tensor) -> Gradients:
    """Squared norms of weight and bias, each [B]."""
    form = call.form or conv_forms(call, x, grad, materialised=False)[0]
    if form in (FUSED_PRODUCT, FUSED_GRAM):
        weight = fused_squared_norm(form, geometry_of(call, x, grad), x, grad)
    elif form in GRAMS:
        per_group = torch.cat(list(_pieces(GRAMS[form], call, geometry_of(call, x, grad), x, grad)))
        weight = per_group.view(len(x), -1).sum(1)
    else:
        gradients = weight_gradients(replace(call, form=form), x, grad)
        weight = torch.cat([squared_norm(piece) for piece in gradients])
    return {"weight": weight} | ({} if call.bias is None else {"bias": squared_norm(place_sums(grad))})


def fused_squared_norm(form: str, geometry: Geometry, x: Tensor, grad: Tensor) -> Tensor:
    """Squared norm [B] of the weight's gradient, by a fused form. Raises ClassifierError where none runs."""
    kernels = fused_kernels(x)
    if kernels is None:
        raise ClassifierError(f"{form}: no fused kernels for {x.dtype} on {x.device}")
    if form == FUSED_GRAM:
        norm: Tensor = kernels.gram(geometry, x, grad)
    else:
        norm = kernels.products(geometry, x, grad)[0].sum((0, 2))
    return norm


def place_sums(grad: Tensor) -> Tensor:
    """A gradient [B, Q, O, ...] summed over all places, [B, O]."""
    kernels = fused_kernels(grad)
    total: Tensor = kernels.sums(grad) if kernels else channel_sums(grad, 2)
    return total


def folding_pays(call: Call, x: Tensor, grad: Tensor) -> bool:
    """Whether making the gradients once, for a convolution and the BatchNorm after it, costs less than both alone."""
    geometry = geometry_of(call, x, grad)
    if kernels := fused_kernels_of(x.device):
        if geometry.depthwise:
            return True
        passes = 6 * PASS_ON_A_GPU * geometry.groups * geometry.places * geometry.outputs
        cheap: bool = kernels.product_cost(geometry) <= kernels.gram_cost(geometry) + passes
        return cheap
    passes = 6 * ELEMENTWISE * geometry.places * geometry.outputs
    return min(_costs(MATERIALISED, geometry).values()) <= min(_costs(GRAMS, geometry).values()) + passes
