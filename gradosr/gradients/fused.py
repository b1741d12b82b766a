"""Norms of per-sample gradients that never leave the chip: Triton kernels for CUDA devices.

A per-sample gradient G = g^T A is as large as the weight, for every image. On a GPU, writing it and reading it back
takes longer than computing it. These kernels compute one tile of G in registers, square it there (and multiply it with
the weight, as needed for the scale of a folded BatchNorm), and write only a few sums. The unfolded input A is read in
place.

Legend: B batch, Q maps of a sample, H W input places, I J output places, L = Q * I * J, C input channels and O output
channels of one group, D = kernel places * C, T tiles, S splits of the places. Tensors are [B, Q, channels, ...].
"""

import itertools
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from gradosr.gradients.geometry import Geometry
from gradosr.gradients.triton_kernels import (
    bias_kernel,
    depthwise_kernel,
    folded_kernel,
    gram_kernel,
    product_kernel,
    sums_kernel,
)

PROGRAMS = 1024
"""Number of programs that keeps every multiprocessor of a device reading."""
EPILOGUE = 160
"""Number of places whose products take as long as squaring a tile of G, multiplying it with the weight and summing it.
Measured on an H200."""
DEPTHWISE_WIDTH = 7
"""Largest kernel width that the depthwise kernel supports."""


class Rows(NamedTuple):
    """A tensor as rows of channels, with the distance in elements between samples and between places."""

    tensor: Tensor
    batch: int
    place: int


def _rows(tensor: Tensor) -> Rows:
    """Reshape [B, Q, channels, ...] to [B, Q, ..., channels].

    The result is a view if channels and places are evenly spaced in memory.
    """
    last = tensor.movedim(2, -1)
    inner = [(size, stride) for size, stride in zip(last.shape[1:-1], last.stride()[1:-1], strict=True) if size > 1]
    even = all(stride == size * step for (_, stride), (size, step) in itertools.pairwise(inner))
    if not even or last.stride(-1) != 1:
        last = last.contiguous()
        inner = [(1, last.shape[-1])]
    return Rows(last, last.stride(0), inner[-1][1] if inner else last.shape[-1])


def products(geometry: Geometry, x: Tensor, grad: Tensor, weight_OCK: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return two values per sample and output channel, from the rows of G.

    They are a row's squared norm, and its product with the weight's row, both float32 [T, B, O], to be summed over T.
    Without a weight only the first is meaningful. x is [B, Q, C, ...] and grad is [B, Q, O, ...], with the channels of
    all groups.
    """
    of_x, of_g, g, batch = _rows(x), _rows(grad), geometry, len(x)
    by_place, narrow = g.inputs >= 16, x.dtype != torch.float32
    block_O, block_D = _block(g.outputs, 128), _block(g.inputs if by_place else g.patch, 128 if by_place else 64)
    tiles_O, tiles_C = triton.cdiv(g.outputs, block_O), triton.cdiv(g.inputs, block_D)
    tiles_D = tiles_C * g.kernel[0] * g.kernel[1] if by_place else triton.cdiv(g.patch, block_D)
    squares = torch.empty(tiles_D, batch, g.groups * g.outputs, device=x.device)
    multiplied, weight = squares, squares
    if weight_OCK is not None:
        multiplied, weight = torch.empty_like(squares), weight_OCK.flatten(2).movedim(1, 2).contiguous()
    large = block_O * block_D >= 128 * 128
    product_kernel[(batch * g.groups * tiles_O * tiles_D,)](
        of_x.tensor, of_g.tensor, weight, squares, multiplied,
        of_x.batch, of_x.place, of_g.batch, of_g.place,
        g.places, g.groups, *g.size, g.inputs, *g.out_size, g.outputs, g.patch,
        g.kernel[1], *g.stride, *g.padding, *g.dilation,
        tiles_O, tiles_D, tiles_C,
        BY_PLACE=by_place, WITH_WEIGHT=weight_OCK is not None, PRECISION=_precision(x.dtype),
        BLOCK_O=block_O, BLOCK_D=block_D, BLOCK_L=_block(g.places, 64 if narrow and by_place else 32),
        num_warps=8 if large else 4, num_stages=2 if large and g.places < 512 else 3,
    )  # fmt: skip
    return squares, multiplied


def gram(geometry: Geometry, x: Tensor, grad: Tensor) -> Tensor:
    """Return the squared norm of G per sample, float32 [B], as sum((A^T A) * (g^T g)).

    Shapes are the same as for `products`.
    """
    of_x, of_g, g, batch = _rows(x), _rows(grad), geometry, len(x)
    block_L = _block(g.places, 64)
    pairs = _pairs(g.places, block_L)
    totals = torch.empty(batch, g.groups * pairs, device=x.device)
    gram_kernel[(batch * g.groups * pairs,)](
        of_x.tensor, of_g.tensor, totals,
        of_x.batch, of_x.place, of_g.batch, of_g.place,
        g.places, g.groups, *g.size, g.inputs, *g.out_size, g.outputs,
        g.kernel[0] * g.kernel[1], g.kernel[1], *g.stride, *g.padding, *g.dilation,
        pairs,
        PRECISION=_precision(x.dtype), BLOCK_L=block_L, BLOCK_C=64 if x.dtype != torch.float32 else 32,
        num_warps=4, num_stages=3,
    )  # fmt: skip
    return totals.sum(1).clamp_min(0)  # rounding can make a vanishing gradient's norm slightly negative


def product_cost(geometry: Geometry) -> float:
    """Count the multiply-adds of `products` per sample, including incomplete tiles and the work after each."""
    g = geometry
    block_O, block_D = _block(g.outputs, 128), _block(g.inputs if g.inputs >= 16 else g.patch, 128)
    tiles = triton.cdiv(g.outputs, block_O) * triton.cdiv(g.patch, block_D)
    return float(g.groups * tiles * block_O * block_D * (max(64, g.places) + EPILOGUE))


def gram_cost(geometry: Geometry) -> float:
    """Count the multiply-adds of `gram` per sample, doubled because its smaller tiles reach half the speed."""
    g = geometry
    return 2.0 * g.groups * _pairs(g.places, 64) * 64 * 64 * (g.patch + g.outputs)


def _pairs(places: int, block: int) -> int:
    tiles = int(triton.cdiv(places, block))
    return tiles * (tiles + 1) // 2


def depthwise(geometry: Geometry, x: Tensor, grad: Tensor) -> Tensor:
    """Return per-sample gradients [B, C, kernel places], float32, for one input and one output channel per group.

    The kernel is at most DEPTHWISE_WIDTH wide.
    """
    of_x, of_g, g = _rows(x), _rows(grad), geometry
    kernel_height, kernel_width = g.kernel
    gradients = torch.empty(len(x), g.groups, kernel_height * kernel_width, device=x.device)
    block_C = _block(g.groups, 64)
    tiles_C = triton.cdiv(g.groups, block_C)
    depthwise_kernel[(len(x) * kernel_height * tiles_C,)](
        of_x.tensor, of_g.tensor, gradients,
        of_x.batch, of_x.place, of_g.batch, of_g.place, g.places, *g.size, g.groups, *g.out_size,
        kernel_height, *g.stride, *g.padding, *g.dilation,
        tiles_C,
        KERNEL_WIDTH=kernel_width, BLOCK_L=1024 // block_C, BLOCK_C=block_C, num_warps=4,
    )  # fmt: skip
    return gradients


def sums(grad: Tensor) -> Tensor:
    """Sum a gradient [B, Q, C, ...] over all places, giving float32 [B, C]."""
    return _sums(grad)[-1]


def centred_sums(grad: Tensor, x: Tensor, mean_C: Tensor) -> tuple[Tensor, Tensor]:
    """Return sum(g * (x - mean)) and sum(g) over all places, float32 [B, C], for a BatchNorm's gradients."""
    multiplied, summed = _sums(grad, x, mean_C=mean_C)
    return multiplied, summed


def normalised_sums(grad: Tensor, x: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Return sum(g * xhat) and sum(g) over all places, float32 [B, C], for a LayerNorm's gradients.

    The LayerNorm is over the channels of x [B, Q, C].
    """
    multiplied, summed = _sums(grad, x, epsilon=epsilon)
    return multiplied, summed


def _sums(
    grad: Tensor, x: Tensor | None = None, mean_C: Tensor | None = None, epsilon: float | None = None
) -> list[Tensor]:
    of_g, batch, channels = _rows(grad), len(grad), grad.shape[2]
    of_x = of_g if x is None else _rows(x)
    places = grad[0].numel() // channels
    block_C = _block(channels, 64) if epsilon is None else int(triton.next_power_of_2(channels))
    block_L, tiles_C = max(1, 4096 // block_C), triton.cdiv(channels, block_C)
    splits = min(triton.cdiv(places, block_L), triton.cdiv(PROGRAMS, batch * tiles_C))
    made = torch.empty(1 if x is None else 2, splits, batch, channels, device=grad.device)
    sums_kernel[(batch * splits * tiles_C,)](
        of_g.tensor, of_x.tensor, of_g.tensor if mean_C is None else mean_C, made[-1], made[0],
        of_g.batch, of_g.place, of_x.batch, of_x.place, places, channels, tiles_C, splits, batch, epsilon or 0.0,
        CENTRED=mean_C is not None, NORMALISED=epsilon is not None, BLOCK_L=block_L, BLOCK_C=block_C, num_warps=4,
    )  # fmt: skip
    return [one[0] if splits == 1 else one.sum(0) for one in made]


def folded_norms(
    squares_TBO: Tensor, products_TBO: Tensor, sums_BO: Tensor, scale_O: Tensor, offset_O: Tensor, rstd_O: Tensor
) -> dict[str, Tensor]:
    """Return the squared norms [B] of weight, bias, scale and shift of a convolution with a folded BatchNorm.

    The formulas stand in folding.py.
    """
    tiles, batch, outputs = squares_TBO.shape
    norms = torch.empty(4, batch, device=squares_TBO.device)
    folded_kernel[(batch,)](
        squares_TBO, products_TBO, sums_BO, scale_O, offset_O, rstd_O, norms, tiles, batch, outputs,
        BLOCK_O=_block(outputs, 256), num_warps=4,
    )  # fmt: skip
    return dict(zip(("weight", "bias", "scale", "shift"), norms.unbind(), strict=True))


def add_bias(output: Tensor, bias_O: Tensor) -> Tensor:
    """Add the bias in place to the output [B, O, ...] of a convolution, and return it.

    torch's own pass takes three times as long.
    """
    rows = output.movedim(1, -1)
    if not rows.is_contiguous():
        return output + bias_O.view(-1, *[1] * (output.dim() - 2))
    channels = output.shape[1]
    block_O = _block(channels, 128)
    block_L, tiles_O, places = 4096 // block_O, triton.cdiv(channels, block_O), rows.numel() // channels
    bias_kernel[(triton.cdiv(places, block_L) * tiles_O,)](
        output.detach(), bias_O, places, channels, tiles_O, BLOCK_L=block_L, BLOCK_O=block_O, num_warps=4
    )
    return output


def _block(size: int, most: int) -> int:
    return min(most, max(16, int(triton.next_power_of_2(size))))


def _precision(dtype: torch.dtype) -> str:
    """Return the precision of float32 products that is set for cuBLAS."""
    return "tf32" if dtype != torch.float32 or torch.backends.cuda.matmul.allow_tf32 else "ieee"
