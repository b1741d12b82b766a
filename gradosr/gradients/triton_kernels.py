"""The Triton kernels that gradosr.gradients.fused launches. Legend there."""

from typing import Any

import triton
import triton.language as tl

TENSORS = (
    "x", "g", "w", "y", "bias", "mean", "squares", "products", "totals", "gradients", "sums", "scale", "offset", "rstd",
    "norms",
)  # fmt: skip
READ_BY = ("C", "O", "D", "x_batch", "x_place", "g_batch", "g_place")
"""Sizes that determine how a kernel reads memory (whole vectors if they are multiples of 16). A kernel is compiled for
each kind of these values; all other sizes are passed at run time, so that one build serves them all."""


def _kernel(function: Any) -> Any:
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    sizes = [name for name in names if name not in function.__annotations__ and name not in (*TENSORS, *READ_BY)]
    return triton.jit(function, do_not_specialize=sizes)


@_kernel
def product_kernel(
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
    if BY_PLACE:  # a tile lies within one place of the kernel, so its channels are contiguous in memory
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
def gram_kernel(
    x, g, totals,
    x_batch, x_place, g_batch, g_place, places, groups, height, width, C, rows, columns, O,
    kernel_places, kernel_width, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w,
    pairs,
    PRECISION: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    pair, n = program % pairs, program // pairs
    b, group = (n // groups).to(tl.int64), n % groups
    # Locate tile number `pair` of the lower triangle; a tile below the diagonal counts twice.
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
def depthwise_kernel(  # noqa: PLR0912 - unrolled: Triton has no arrays of accumulators
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
    # One accumulator per place in a row of the kernel, so that the gradient is read once for all of them.
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
def sums_kernel(
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
            else:  # the tile holds whole rows
                x_tile = tl.where(inside, x_tile - (tl.sum(x_tile, 1) / C)[:, None], 0.0)
                product += g_tile * x_tile * tl.rsqrt(tl.sum(x_tile * x_tile, 1) / C + epsilon)[:, None]
    out = (split * batch + b) * C + c
    tl.store(sums + out, tl.sum(total, 0), mask=c < C)
    if CENTRED or NORMALISED:
        tl.store(products + out, tl.sum(product, 0), mask=c < C)


@_kernel
def folded_kernel(
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
def bias_kernel(y, bias, places, O, tiles_O, BLOCK_L: tl.constexpr, BLOCK_O: tl.constexpr):
    program = tl.program_id(0)
    o = program % tiles_O * BLOCK_O + tl.arange(0, BLOCK_O)
    position = (program // tiles_O).to(tl.int64) * BLOCK_L + tl.arange(0, BLOCK_L)
    inside = (position < places)[:, None] & (o < O)[None, :]
    at = y + position[:, None] * O + o[None, :]
    shifted = tl.load(at, mask=inside).to(tl.float32) + tl.load(bias + o, mask=o < O).to(tl.float32)[None, :]
    tl.store(at, shifted, mask=inside)
