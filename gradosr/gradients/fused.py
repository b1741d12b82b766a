"""Norms of per-sample gradients whose products never leave the chip: Triton kernels for CUDA devices.

A per-sample gradient G = g^T A is as large as the weight, for every image: on a GPU, writing it and reading it back
takes longer than making it. These kernels make a tile of it in registers, square it there (and multiply it with the
weight, which a folded BatchNorm's scale needs), and write a few sums. The unfolded input A is read in place.

Legend: B batch, Q maps of a sample, H W input places, I J output places, L = Q * I * J, C input channels and O output
channels of one group, D = kernel places * C, T tiles, S splits of the places. Tensors are [B, Q, channels, ...].
"""

import itertools
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from gradosr.gradients.geometry import Geometry

TENSORS = (
    "x", "g", "w", "y", "bias", "mean", "squares", "products", "totals", "gradients", "sums", "scale", "offset", "rstd",
    "norms",
)  # fmt: skip
READ_BY = ("C", "O", "D", "x_batch", "x_place", "g_batch", "g_place")
"""Numbers that decide how a kernel reads (whole vectors where they are multiples of 16): it is built for each kind of
them. All other sizes are taken as they are, so that one build serves them all."""
PROGRAMS = 1024
"""Enough to keep every multiprocessor of a device reading."""
EPILOGUE = 160
"""Places in whose time a tile of G is squared, multiplied with the weight and summed. Measured on an H200."""
DEPTHWISE_WIDTH = 7
"""The widest kernel that the depthwise kernel takes."""


def _kernel(function: Any) -> Any:
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    sizes = [name for name in names if name not in function.__annotations__ and name not in (*TENSORS, *READ_BY)]
    return triton.jit(function, do_not_specialize=sizes)


@_kernel
def _product_kernel(
    x, g, w, squares, products,
    x_batch, x_place, g_batch, g_place, places, groups, height, width, C, rows, columns, O, D,
    kernel_width, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w,
    tiles_O, tiles_D, tiles_C,
    BY_PLACE: tl.constexpr, WITH_WEIGHT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_O: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    tile_D = program % tiles_D
    tile_O = program // tiles_D % tiles_O
    n = program // (tiles_D * tiles_O)
    b, group = (n // groups).to(tl.int64), n % groups
    o = tile_O * BLOCK_O + tl.arange(0, BLOCK_O)
    if BY_PLACE:  # a tile lies within one place of the kernel: its channels are neighbours in memory
        place = tile_D // tiles_C
        c = tile_D % tiles_C * BLOCK_D + tl.arange(0, BLOCK_D)
        d, in_D = place * C + c, c < C
    else:
        d = tile_D * BLOCK_D + tl.arange(0, BLOCK_D)
        place, c, in_D = d // C, d % C, d < D
    down = place // kernel_width * dilation_h - padding_h
    right = place % kernel_width * dilation_w - padding_w
    g_channels = g + b * g_batch + group * O + o
    x_channels = x + b * x_batch + group * C + c
    total = tl.zeros((BLOCK_O, BLOCK_D), tl.float32)
    for start in range(0, places, BLOCK_L):
        position = start + tl.arange(0, BLOCK_L)
        in_L = position < places
        row = position // columns
        i, map_, j = row % rows, row // rows, position % columns
        if BY_PLACE:
            h, v = i * stride_h + down, j * stride_w + right
            inside = in_L & (h >= 0) & (h < height) & (v >= 0) & (v < width)
            at = (map_ * height + h) * width + v
            x_tile = tl.load(
                x_channels[None, :] + at[:, None] * x_place, mask=inside[:, None] & in_D[None, :], other=0.0
            )
        else:
            h, v = i[:, None] * stride_h + down[None, :], j[:, None] * stride_w + right[None, :]
            inside = in_L[:, None] & in_D[None, :] & (h >= 0) & (h < height) & (v >= 0) & (v < width)
            at = (map_[:, None] * height + h) * width + v
            x_tile = tl.load(x_channels[None, :] + at * x_place, mask=inside, other=0.0)
        g_tile = tl.load(
            g_channels[None, :] + position[:, None] * g_place, mask=in_L[:, None] & (o < O)[None, :], other=0.0
        )
        total = tl.dot(tl.trans(g_tile), x_tile, total, input_precision=PRECISION)
    samples = tl.num_programs(0) // (tiles_D * tiles_O)
    out = (tl.cast(tile_D, tl.int64) * samples + n) * O + o
    tl.store(squares + out, tl.sum(total * total, 1), mask=o < O)
    if WITH_WEIGHT:
        w_tile = tl.load(
            w + (group * O + o)[:, None] * D + d[None, :], mask=(o < O)[:, None] & in_D[None, :], other=0.0
        ).to(tl.float32)
        tl.store(products + out, tl.sum(total * w_tile, 1), mask=o < O)


@_kernel
def _gram_kernel(
    x, g, totals,
    x_batch, x_place, g_batch, g_place, places, groups, height, width, C, rows, columns, O,
    kernel_places, kernel_width, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w,
    pairs,
    PRECISION: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    pair, n = program % pairs, program // pairs
    b, group = (n // groups).to(tl.int64), n % groups
    # The pair-th tile of the lower triangle: below its diagonal every product stands for two.
    low = tl.floor((tl.sqrt(8.0 * pair + 1.0) - 1.0) * 0.5).to(tl.int32)
    low = tl.where(low * (low + 1) // 2 > pair, low - 1, low)
    low = tl.where((low + 1) * (low + 2) // 2 <= pair, low + 1, low)
    high = pair - low * (low + 1) // 2
    p, q = low * BLOCK_L + tl.arange(0, BLOCK_L), high * BLOCK_L + tl.arange(0, BLOCK_L)
    channel = tl.arange(0, BLOCK_C)
    g_sample = g + b * g_batch + group * O
    gram_g = tl.zeros((BLOCK_L, BLOCK_L), tl.float32)
    for start in range(0, O, BLOCK_C):
        o = start + channel
        g_p = tl.load(
            g_sample + p[:, None] * g_place + o[None, :], mask=(p < places)[:, None] & (o < O)[None, :], other=0.0
        )
        g_q = tl.load(
            g_sample + q[:, None] * g_place + o[None, :], mask=(q < places)[:, None] & (o < O)[None, :], other=0.0
        )
        gram_g = tl.dot(g_p, tl.trans(g_q), gram_g, input_precision=PRECISION)
    x_sample = x + b * x_batch + group * C
    row_p, row_q = p // columns, q // columns
    gram_x = tl.zeros((BLOCK_L, BLOCK_L), tl.float32)
    for place in range(0, kernel_places):
        down = place // kernel_width * dilation_h - padding_h
        right = place % kernel_width * dilation_w - padding_w
        h_p, v_p = row_p % rows * stride_h + down, p % columns * stride_w + right
        h_q, v_q = row_q % rows * stride_h + down, q % columns * stride_w + right
        in_p = (p < places) & (h_p >= 0) & (h_p < height) & (v_p >= 0) & (v_p < width)
        in_q = (q < places) & (h_q >= 0) & (h_q < height) & (v_q >= 0) & (v_q < width)
        at_p = ((row_p // rows * height + h_p) * width + v_p) * x_place
        at_q = ((row_q // rows * height + h_q) * width + v_q) * x_place
        for start in range(0, C, BLOCK_C):
            c = start + channel
            x_p = tl.load(x_sample + at_p[:, None] + c[None, :], mask=in_p[:, None] & (c < C)[None, :], other=0.0)
            x_q = tl.load(x_sample + at_q[:, None] + c[None, :], mask=in_q[:, None] & (c < C)[None, :], other=0.0)
            gram_x = tl.dot(x_p, tl.trans(x_q), gram_x, input_precision=PRECISION)
    both = tl.sum(tl.sum(gram_x * gram_g, 1), 0)
    tl.store(totals + program, tl.where(low == high, both, 2.0 * both))


@_kernel
def _depthwise_kernel(  # noqa: PLR0912 - unrolled: Triton has no arrays of accumulators
    x, g, gradients,
    x_batch, x_place, g_batch, g_place, places, height, width, C, rows, columns,
    kernel_height, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w,
    tiles_C,
    KERNEL_WIDTH: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    c = program % tiles_C * BLOCK_C + tl.arange(0, BLOCK_C)
    a = program // tiles_C % kernel_height
    b = (program // (tiles_C * kernel_height)).to(tl.int64)
    down = a * dilation_h - padding_h
    g_channels, x_channels = g + b * g_batch + c, x + b * x_batch + c
    # One accumulator per place of a row of the kernel: the gradient is read once for all of them.
    t0 = tl.zeros((BLOCK_L, BLOCK_C), tl.float32)
    t1, t2, t3, t4, t5, t6 = t0, t0, t0, t0, t0, t0
    for start in range(0, places, BLOCK_L):
        position = start + tl.arange(0, BLOCK_L)
        row = position // columns
        h, v = row % rows * stride_h + down, position % columns * stride_w - padding_w
        in_row = (position < places) & (h >= 0) & (h < height)
        g_tile = tl.load(
            g_channels[None, :] + position[:, None] * g_place,
            mask=(position < places)[:, None] & (c < C)[None, :],
            other=0.0,
        ).to(tl.float32)
        line = (row // rows * height + h) * width
        t0 += g_tile * _window(x_channels, line, v, in_row, c < C, x_place, width)
        if KERNEL_WIDTH > 1:
            t1 += g_tile * _window(x_channels, line, v + dilation_w, in_row, c < C, x_place, width)
        if KERNEL_WIDTH > 2:
            t2 += g_tile * _window(x_channels, line, v + 2 * dilation_w, in_row, c < C, x_place, width)
        if KERNEL_WIDTH > 3:
            t3 += g_tile * _window(x_channels, line, v + 3 * dilation_w, in_row, c < C, x_place, width)
        if KERNEL_WIDTH > 4:
            t4 += g_tile * _window(x_channels, line, v + 4 * dilation_w, in_row, c < C, x_place, width)
        if KERNEL_WIDTH > 5:
            t5 += g_tile * _window(x_channels, line, v + 5 * dilation_w, in_row, c < C, x_place, width)
        if KERNEL_WIDTH > 6:
            t6 += g_tile * _window(x_channels, line, v + 6 * dilation_w, in_row, c < C, x_place, width)
    out = gradients + ((b * C + c) * kernel_height + a) * KERNEL_WIDTH
    tl.store(out, tl.sum(t0, 0), mask=c < C)
    if KERNEL_WIDTH > 1:
        tl.store(out + 1, tl.sum(t1, 0), mask=c < C)
    if KERNEL_WIDTH > 2:
        tl.store(out + 2, tl.sum(t2, 0), mask=c < C)
    if KERNEL_WIDTH > 3:
        tl.store(out + 3, tl.sum(t3, 0), mask=c < C)
    if KERNEL_WIDTH > 4:
        tl.store(out + 4, tl.sum(t4, 0), mask=c < C)
    if KERNEL_WIDTH > 5:
        tl.store(out + 5, tl.sum(t5, 0), mask=c < C)
    if KERNEL_WIDTH > 6:
        tl.store(out + 6, tl.sum(t6, 0), mask=c < C)


@triton.jit
def _window(x_channels, line, v, in_row, in_C, x_place, width):
    inside = in_row & (v >= 0) & (v < width)
    return tl.load(
        x_channels[None, :] + (line + v)[:, None] * x_place, mask=inside[:, None] & in_C[None, :], other=0.0
    ).to(tl.float32)


@_kernel
def _sums_kernel(
    g, x, mean, sums, products,
    g_batch, g_place, x_batch, x_place, places, C, tiles_C, splits, batch, epsilon,
    CENTRED: tl.constexpr, NORMALISED: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    c = program % tiles_C * BLOCK_C + tl.arange(0, BLOCK_C)
    split = program // tiles_C % splits
    b = (program // (tiles_C * splits)).to(tl.int64)
    total = tl.zeros((BLOCK_L, BLOCK_C), tl.float32)
    product = total
    if CENTRED:
        centre = tl.load(mean + c, mask=c < C, other=0.0).to(tl.float32)
    for start in range(split * BLOCK_L, places, splits * BLOCK_L):
        position = start + tl.arange(0, BLOCK_L)
        inside = (position < places)[:, None] & (c < C)[None, :]
        g_tile = tl.load(g + b * g_batch + position[:, None] * g_place + c[None, :], mask=inside, other=0.0)
        g_tile = g_tile.to(tl.float32)
        total += g_tile
        if CENTRED or NORMALISED:
            x_tile = tl.load(x + b * x_batch + position[:, None] * x_place + c[None, :], mask=inside, other=0.0)
            x_tile = x_tile.to(tl.float32)
            if CENTRED:
                product += g_tile * (x_tile - centre[None, :])
            else:  # the whole row is here
                x_tile = tl.where(inside, x_tile - (tl.sum(x_tile, 1) / C)[:, None], 0.0)
                product += g_tile * x_tile * tl.rsqrt(tl.sum(x_tile * x_tile, 1) / C + epsilon)[:, None]
    out = (split * batch + b) * C + c
    tl.store(sums + out, tl.sum(total, 0), mask=c < C)
    if CENTRED or NORMALISED:
        tl.store(products + out, tl.sum(product, 0), mask=c < C)


@_kernel
def _folded_kernel(
    squares, products, sums, scale, offset, rstd, norms, tiles, batch, O, BLOCK_O: tl.constexpr
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    weight = tl.zeros((BLOCK_O,), tl.float32)
    bias, gamma, beta = weight, weight, weight
    for start in range(0, O, BLOCK_O):
        o = start + tl.arange(0, BLOCK_O)
        square, product = tl.zeros((BLOCK_O,), tl.float32), tl.zeros((BLOCK_O,), tl.float32)
        for tile in range(0, tiles):
            at = (tile * batch + b) * O + o
            square += tl.load(squares + at, mask=o < O, other=0.0)
            product += tl.load(products + at, mask=o < O, other=0.0)
        s = tl.load(scale + o, mask=o < O, other=0.0)
        total = tl.load(sums + b * O + o, mask=o < O, other=0.0)
        centred = product + total * tl.load(offset + o, mask=o < O, other=0.0)
        scaled = centred * tl.load(rstd + o, mask=o < O, other=0.0)
        weight += square * s * s
        bias += (total * s) * (total * s)
        gamma += scaled * scaled
        beta += total * total
    tl.store(norms + b, tl.sum(weight, 0))
    tl.store(norms + batch + b, tl.sum(bias, 0))
    tl.store(norms + 2 * batch + b, tl.sum(gamma, 0))
    tl.store(norms + 3 * batch + b, tl.sum(beta, 0))


@_kernel
def _bias_kernel(y, bias, places, O, tiles_O, BLOCK_L: tl.constexpr, BLOCK_O: tl.constexpr):
    program = tl.program_id(0)
    o = program % tiles_O * BLOCK_O + tl.arange(0, BLOCK_O)
    position = (program // tiles_O).to(tl.int64) * BLOCK_L + tl.arange(0, BLOCK_L)
    inside = (position < places)[:, None] & (o < O)[None, :]
    at = y + position[:, None] * O + o[None, :]
    shifted = tl.load(at, mask=inside).to(tl.float32) + tl.load(bias + o, mask=o < O).to(tl.float32)[None, :]
    tl.store(at, shifted, mask=inside)


class Rows(NamedTuple):
    """A tensor as rows of channels: where a sample and a place begin, in elements."""

    tensor: Tensor
    batch: int
    place: int


def _rows(tensor: Tensor) -> Rows:
    """[B, Q, channels, ...] as [B, Q, ..., channels], in place where its channels and places are evenly spaced."""
    last = tensor.movedim(2, -1)
    inner = [(size, stride) for size, stride in zip(last.shape[1:-1], last.stride()[1:-1], strict=True) if size > 1]
    even = all(stride == size * step for (_, stride), (size, step) in itertools.pairwise(inner))
    if not even or last.stride(-1) != 1:
        last = last.contiguous()
        inner = [(1, last.shape[-1])]
    return Rows(last, last.stride(0), inner[-1][1] if inner else last.shape[-1])


def products(geometry: Geometry, x: Tensor, grad: Tensor, weight_OCK: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Per sample and output channel, of the rows of G: squared norms, and products with the weight's.

    x [B, Q, C, ...] and grad [B, Q, O, ...] with channels of all groups. Both float32 [T, B, O], to be summed over T;
    without a weight the first alone is meant.
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
    _product_kernel[(batch * g.groups * tiles_O * tiles_D,)](
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
    """Squared norm of G per sample, float32 [B], as sum((A^T A) * (g^T g)); shapes as for `products`."""
    of_x, of_g, g, batch = _rows(x), _rows(grad), geometry, len(x)
    block_L = _block(g.places, 64)
    pairs = _pairs(g.places, block_L)
    totals = torch.empty(batch, g.groups * pairs, device=x.device)
    _gram_kernel[(batch * g.groups * pairs,)](
        of_x.tensor, of_g.tensor, totals,
        of_x.batch, of_x.place, of_g.batch, of_g.place,
        g.places, g.groups, *g.size, g.inputs, *g.out_size, g.outputs,
        g.kernel[0] * g.kernel[1], g.kernel[1], *g.stride, *g.padding, *g.dilation,
        pairs,
        PRECISION=_precision(x.dtype), BLOCK_L=block_L, BLOCK_C=64 if x.dtype != torch.float32 else 32,
        num_warps=4, num_stages=3,
    )  # fmt: skip
    return totals.sum(1).clamp_min(0)  # rounding can leave that of a vanishing gradient just below zero


def product_cost(geometry: Geometry) -> float:
    """Multiply-adds of `products` per sample, whole tiles and their ends counted."""
    g = geometry
    block_O, block_D = _block(g.outputs, 128), _block(g.inputs if g.inputs >= 16 else g.patch, 128)
    tiles = triton.cdiv(g.outputs, block_O) * triton.cdiv(g.patch, block_D)
    return float(g.groups * tiles * block_O * block_D * (max(64, g.places) + EPILOGUE))


def gram_cost(geometry: Geometry) -> float:
    """The same of `gram`; its smaller tiles reach half the speed."""
    g = geometry
    return 2.0 * g.groups * _pairs(g.places, 64) * 64 * 64 * (g.patch + g.outputs)


def _pairs(places: int, block: int) -> int:
    tiles = int(triton.cdiv(places, block))
    return tiles * (tiles + 1) // 2


def depthwise(geometry: Geometry, x: Tensor, grad: Tensor) -> Tensor:
    """Per-sample gradients [B, C, kernel places], float32, of one channel in and one out per group.

    The kernel is at most DEPTHWISE_WIDTH wide.
    """
    of_x, of_g, g = _rows(x), _rows(grad), geometry
    kernel_height, kernel_width = g.kernel
    gradients = torch.empty(len(x), g.groups, kernel_height * kernel_width, device=x.device)
    block_C = _block(g.groups, 64)
    tiles_C = triton.cdiv(g.groups, block_C)
    _depthwise_kernel[(len(x) * kernel_height * tiles_C,)](
        of_x.tensor, of_g.tensor, gradients,
        of_x.batch, of_x.place, of_g.batch, of_g.place, g.places, *g.size, g.groups, *g.out_size,
        kernel_height, *g.stride, *g.padding, *g.dilation,
        tiles_C,
        KERNEL_WIDTH=kernel_width, BLOCK_L=1024 // block_C, BLOCK_C=block_C, num_warps=4,
    )  # fmt: skip
    return gradients


def sums(grad: Tensor) -> Tensor:
    """Sums over all places, float32 [B, C], of a gradient [B, Q, C, ...]."""
    return _sums(grad)[-1]


def centred_sums(grad: Tensor, x: Tensor, mean_C: Tensor) -> tuple[Tensor, Tensor]:
    """sum(g * (x - mean)) and sum(g) over all places, float32 [B, C]: what a BatchNorm's gradients are made of."""
    multiplied, summed = _sums(grad, x, mean_C=mean_C)
    return multiplied, summed


def normalised_sums(grad: Tensor, x: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """sum(g * xhat) and sum(g) over all places, float32 [B, C], of a LayerNorm over the channels: x [B, Q, C]."""
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
    _sums_kernel[(batch * splits * tiles_C,)](
        of_g.tensor, of_x.tensor, of_g.tensor if mean_C is None else mean_C, made[-1], made[0],
        of_g.batch, of_g.place, of_x.batch, of_x.place, places, channels, tiles_C, splits, batch, epsilon or 0.0,
        CENTRED=mean_C is not None, NORMALISED=epsilon is not None, BLOCK_L=block_L, BLOCK_C=block_C, num_warps=4,
    )  # fmt: skip
    return [one[0] if splits == 1 else one.sum(0) for one in made]


def folded_norms(
    squares_TBO: Tensor, products_TBO: Tensor, sums_BO: Tensor, scale_O: Tensor, offset_O: Tensor, rstd_O: Tensor
) -> dict[str, Tensor]:
    """Squared norms [B] of weight, bias, scale and shift of a convolution with its BatchNorm (see folding.py)."""
    tiles, batch, outputs = squares_TBO.shape
    norms = torch.empty(4, batch, device=squares_TBO.device)
    _folded_kernel[(batch,)](
        squares_TBO, products_TBO, sums_BO, scale_O, offset_O, rstd_O, norms, tiles, batch, outputs,
        BLOCK_O=_block(outputs, 256), num_warps=4,
    )  # fmt: skip
    return dict(zip(("weight", "bias", "scale", "shift"), norms.unbind(), strict=True))


def add_bias(output: Tensor, bias_O: Tensor) -> Tensor:
    """The output [B, O, ...] of a convolution, its bias added in place: torch's own pass takes three times as long."""
    rows = output.movedim(1, -1)
    if not rows.is_contiguous():
        return output + bias_O.view(-1, *[1] * (output.dim() - 2))
    channels = output.shape[1]
    block_O = _block(channels, 128)
    block_L, tiles_O, places = 4096 // block_O, triton.cdiv(channels, block_O), rows.numel() // channels
    _bias_kernel[(triton.cdiv(places, block_L) * tiles_O,)](
        output.detach(), bias_O, places, channels, tiles_O, BLOCK_L=block_L, BLOCK_O=block_O, num_warps=4
    )
    return output


def _block(size: int, most: int) -> int:
    return min(most, max(16, int(triton.next_power_of_2(size))))


def _precision(dtype: torch.dtype) -> str:
    """How products of float32 are made: as cuBLAS is told to make them."""
    return "tf32" if dtype != torch.float32 or torch.backends.cuda.matmul.allow_tf32 else "ieee"
