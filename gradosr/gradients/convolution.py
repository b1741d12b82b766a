"""Convolutions: exact forms of the per-sample gradient and of its squared norm.

Legend: N samples (groups are folded into them), C input channels, O output channels, H W input places, I J output
places, L = I * J, D = C * kernel. With A [D, L] the unfolded input and g [O, L] the gradient at the output, the
weight's gradient is G = g A^T, computed in L D O multiply-adds:

    library            the library's own weight-gradient kernel, one sample at a time
    depthwise          one input channel: a product and a sum per place of the kernel
    unfolded product   A is built (a view if the kernel is 1 x 1), then one batched product

The norm can also be computed without the gradient:

    unfolded Gram      sum((A^T A) * (g^T g)): L^2 (D + O)
    shifted Gram       stride 1: A^T A is a sum of shifted pieces of x^T x, so nothing is unfolded: L^2 (C + O)

On a GPU that runs the fused kernels (fused.py), these replace all but the depthwise form:

    fused product      G is computed tile by tile and squared in registers
    fused Gram         the two Gram matrices are computed tile by tile and multiplied in registers
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
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
"""Largest batch on a GPU for which a kernel per sample is tried."""
PASS_ON_A_GPU = 150
"""Multiply-adds of a fused product that take as long as reading and writing one element. Measured on an H200."""
LIBRARY_CALL = 5e5
"""Multiply-adds that take as long as one more call of a library kernel."""


def _by_group(tensor: Tensor, groups: int) -> Tensor:
    """Reshape [B, Q, groups * channels, ...] to [B * groups, Q, channels, height, width]; 1-D maps get height 1."""
    if tensor.dim() == 4:
        tensor = tensor.unsqueeze(3)
    batch, maps, channels, height, width = tensor.shape
    return (
        tensor.reshape(batch, maps, groups, channels // groups, height, width)
        .transpose(1, 2)
        .reshape(batch * groups, maps, channels // groups, height, width)
    )


def _places_last(tensor_NQCHW: Tensor) -> Tensor:
    """Reshape to [N, Q * H * W, C]; a view if there is one map."""
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
    # In channels-last order each place of the kernel takes one product and one sum over whole rows of channels,
    # however short the image's lines are.
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
    """Reshape [B, Q, C, ...] to [B * Q, C, height, width]."""
    return (tensor if tensor.dim() == 5 else tensor.unsqueeze(3)).flatten(0, 1)


def _unfolded(geometry: Geometry, x: Tensor) -> Tensor:
    """Return the patches [N, Q * L, D]; a view for a pointwise convolution."""
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
    """Compute the result of F.unfold in one kernel; on a GPU F.unfold launches one kernel per sample."""
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
    # over all common shifts of both. Rows and columns shift independently, so one axis is summed after the other.
    by_rows = gram.new_zeros(len(gram), rows, width, rows, width)
    for out, into in _shifts(g.kernel[0], g.dilation[0], g.padding[0], height, rows):
        by_rows[:, out, :, out] += gram[:, into, :, into]
    both = gram.new_zeros(len(gram), rows, columns, rows, columns)
    for out, into in _shifts(g.kernel[1], g.dilation[1], g.padding[1], width, columns):
        both[:, :, out, :, out] += by_rows[:, :, into, :, into]
    gram_grad = torch.bmm(grad_NOL.transpose(1, 2), grad_NOL)
    return dot(both.flatten(1), gram_grad.flatten(1)).clamp_min(0)


def _shifts(kernel: int, dilation: int, padding: int, size: int, out_size: int) -> Iterator[tuple[slice, slice]]:
    """Yield two slices for each place of the kernel.

    They are the output places that read inside the input there, and the input places that they read.
    """
    for place in range(kernel):
        shift = place * dilation - padding
        low, high = max(0, -shift), min(out_size, size - shift)
        if low < high:
            yield slice(low, high), slice(low + shift, high + shift)


class Form(NamedTuple):
    """One exact way to compute a gradient or its squared norm."""

    fits: Callable[[Geometry], bool]
    cost: Callable[[Geometry], float]
    """Multiply-adds per sample; an element of memory-bound work counts as ELEMENTWISE of them."""
    floats: Callable[[Geometry], int]
    """Numbers held in memory at once, per sample and group."""
    run: Callable[[Call, Geometry, Tensor, Tensor], Tensor]
    """Function (call, geometry, x [B, Q, channels, ...], grad) -> the gradients, B * O * D numbers; a Gram form returns
    squared norms [B * groups]."""


MATERIALISED: dict[str, Form] = {
    "library": Form(
        fits=lambda _: True,
        # A product over a single channel reaches only a fraction of the usual speed.
        cost=lambda g: g.groups * g.product * (ELEMENTWISE / 4 if g.inputs == 1 else 1) + LIBRARY_CALL,
        floats=lambda _: CHUNK_BYTES,  # one sample at a time: the gradient is read back while still in cache
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
        # A batched product over many places reaches about two thirds of the library kernel's speed.
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
        # The Gram matrices are symmetric: half of each is computed.
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
    """Return the names of the forms worth trying, least counted work first.

    With `materialised`, only those that compute every row of G.
    """
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
    """Return the names of the fused forms worth trying, least counted work first; empty without fused kernels."""
    kernels = fused_kernels(x)
    if kernels is None:
        return []
    return plausible({FUSED_PRODUCT: kernels.product_cost(geometry), FUSED_GRAM: kernels.gram_cost(geometry)})


def weight_gradients(call: Call, x: Tensor, grad: Tensor) -> Iterator[Tensor]:
    """Yield the weight's gradients as [n, O, D], one piece of the batch at a time."""
    geometry = geometry_of(call, x, grad)
    form = MATERIALISED[call.form or plausible(_costs(MATERIALISED, geometry))[0]]
    for piece in _pieces(form, call, geometry, x, grad):
        yield piece.reshape(-1, geometry.groups * geometry.outputs, geometry.patch)  # copies channels-last rows


def conv_gradients(call: Call, x: Tensor, grad: Tensor) -> Gradients:
    """Return the per-sample gradients of weight [B, O, C/groups, *kernel] and bias [B, O]."""
    weight = torch.cat(list(weight_gradients(call, x, grad)))
    gradients = {"weight": weight.view(-1, *weight_of(call).shape)}
    return gradients | ({} if call.bias is None else {"bias": channel_sums(grad, 2)})


def conv_squared_norms(call: Call, x: Tensor, grad: Tensor) -> Gradients:
    """Return the squared norms of weight and bias, each [B]."""
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
    """Return the squared norm [B] of the weight's gradient, computed by a fused form.

    Raise ClassifierError if no fused kernels support this type and device.
    """
    kernels = fused_kernels(x)
    if kernels is None:
        raise ClassifierError(f"{form}: no fused kernels for {x.dtype} on {x.device}")
    if form == FUSED_GRAM:
        norm: Tensor = kernels.gram(geometry, x, grad)
    else:
        norm = kernels.products(geometry, x, grad)[0].sum((0, 2))
    return norm


def place_sums(grad: Tensor) -> Tensor:
    """Sum a gradient [B, Q, O, ...] over all places, giving [B, O]."""
    kernels = fused_kernels(grad)
    total: Tensor = kernels.sums(grad) if kernels else channel_sums(grad, 2)
    return total


def folding_pays(call: Call, x: Tensor, grad: Tensor) -> bool:
    """Return whether folding the BatchNorm into the convolution before it saves time.

    Folded, the gradients are computed once for both layers; otherwise each layer computes its own norms.
    """
    geometry = geometry_of(call, x, grad)
    if kernels := fused_kernels_of(x.device):
        if geometry.depthwise:
            return True
        passes = 6 * PASS_ON_A_GPU * geometry.groups * geometry.places * geometry.outputs
        cheap: bool = kernels.product_cost(geometry) <= kernels.gram_cost(geometry) + passes
        return cheap
    passes = 6 * ELEMENTWISE * geometry.places * geometry.outputs
    return min(_costs(MATERIALISED, geometry).values()) <= min(_costs(GRAMS, geometry).values()) + passes
