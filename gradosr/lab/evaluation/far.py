"""Generated images that show no object, unlike anything a classifier of photographs has seen. uint8 [N, 3, H, W].

digits     scikit-learn's hand-written digits, light on dark and dark on light, some in two random colours
noise      uniform, Gaussian, binary, per pixel or per channel, and salt and pepper on a flat colour
textures   stripes, waves, checks, rings, moiré and blocks of random period, angle and colours

Three more kinds are for making choices, so that the kinds above are measured without having influenced any choice:

strokes    three straight lines of random width in one colour on another
clouds     smooth random colours, from a grid of 2 to 6 points a side
shapes     five discs and rectangles of random place, size and colour
"""

import math
from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

Size = tuple[int, int]


def digits(count: int, size: Size, draws: torch.Generator) -> Tensor:
    """Return the first `count` of the 1,797 digits, enlarged; more than that start again from the first."""
    shapes_N1HW = torch.from_numpy(load_digits().images).float()[:, None] / 16
    shapes_N1HW = shapes_N1HW[torch.arange(count) % len(shapes_N1HW)]
    ink_N1HW = F.interpolate(shapes_N1HW, size, mode="bicubic").clamp(0, 1)
    plain_N3HW = ink_N1HW.expand(-1, 3, -1, -1)
    kind_N = torch.arange(count) % 3
    images = torch.where(_column(kind_N == 0), plain_N3HW, 1 - plain_N3HW)
    return _bytes(torch.where(_column(kind_N == 2), _two_colours(ink_N1HW, draws), images))


def noise(count: int, size: Size, draws: torch.Generator) -> Tensor:
    """Return five kinds of noise in turn."""
    shape = (count, 3, *size)
    uniform, one_channel = torch.rand(shape, generator=draws), torch.rand(count, 1, *size, generator=draws)
    flat, salt = torch.rand(count, 3, 1, 1, generator=draws), torch.rand(count, 1, *size, generator=draws)
    kinds = [
        uniform,
        0.5 + 0.3 * torch.randn(shape, generator=draws),
        uniform.round(),
        one_channel.expand(shape),
        torch.where(salt < 0.2, one_channel.round(), flat),
    ]
    return _bytes(_in_turn(kinds))


def textures(count: int, size: Size, draws: torch.Generator) -> Tensor:
    """Return six kinds of textures in turn."""
    y, x = _positions(size)

    def between(low: float, high: float) -> Tensor:
        return (low + (high - low) * torch.rand(count, generator=draws)).view(-1, 1, 1, 1)

    side = float(max(size))
    angle, waves = between(0, math.pi), between(2.5, 15) * 2 * math.pi / side
    along = waves * (torch.cos(angle) * x + torch.sin(angle) * y)
    centre_y, centre_x = between(0, side), between(0, side)
    radius = torch.hypot(x - centre_x, y - centre_y)
    checks = (torch.sin(waves * x) > 0) ^ (torch.sin(between(2.5, 15) * 2 * math.pi / side * y) > 0)
    cell = max(1, math.ceil(side / 8))
    blocks = torch.rand(count, 3, 8, 8, generator=draws).repeat_interleave(cell, 2).repeat_interleave(cell, 3)
    waved = [(torch.sin(along) > 0).float(), (torch.sin(along) + 1) / 2, checks.float()]
    waved += [(torch.sin(waves * radius) + 1) / 2, (torch.sin(waves * radius.square() / 8) + 1) / 2]
    coloured = [_two_colours(one, draws) for one in waved]
    return _bytes(_in_turn([*coloured, blocks[..., : size[0], : size[1]]]))


def strokes(count: int, size: Size, draws: torch.Generator) -> Tensor:
    """Return strokes in random colours on a background of another random colour."""
    y, x = _positions(size)
    ink_N1HW = torch.zeros(count, 1, *size)
    for _ in range(3):
        ends = torch.rand(4, count, 1, 1, 1, generator=draws) * max(size)
        (from_y, from_x), (along_y, along_x) = ends[:2], ends[2:] - ends[:2]
        share = ((y - from_y) * along_y + (x - from_x) * along_x) / (along_y.square() + along_x.square()).clamp_min(1)
        share = share.clamp(0, 1)
        away = torch.hypot(y - from_y - share * along_y, x - from_x - share * along_x)
        width = (0.02 + 0.06 * torch.rand(count, 1, 1, 1, generator=draws)) * max(size)
        ink_N1HW = torch.maximum(ink_N1HW, (1 + width - away).clamp(0, 1))
    return _bytes(_two_colours(ink_N1HW, draws))


def clouds(count: int, size: Size, draws: torch.Generator) -> Tensor:
    """Return clouds with five levels of detail in turn."""
    grids = [torch.rand(count, 3, side, side, generator=draws) for side in range(2, 7)]
    return _bytes(_in_turn([F.interpolate(grid, size, mode="bicubic", align_corners=True) for grid in grids]))


def shapes(count: int, size: Size, draws: torch.Generator) -> Tensor:
    """Return shapes that cover each other, on a flat colour."""
    y, x = _positions(size)
    images = torch.rand(count, 3, 1, 1, generator=draws).expand(-1, -1, *size)
    for number in range(5):
        centre_y, centre_x, height, width = torch.rand(4, count, 1, 1, 1, generator=draws)
        far_y = (y / size[0] - centre_y).abs() / (0.05 + 0.3 * height)
        far_x = (x / size[1] - centre_x).abs() / (0.05 + 0.3 * width)
        inside = (torch.hypot(far_y, far_x) if number % 2 else torch.maximum(far_y, far_x)) < 1
        images = torch.where(inside, torch.rand(count, 3, 1, 1, generator=draws), images)
    return _bytes(images)


MADE: dict[str, Callable[[int, Size, torch.Generator], Tensor]] = {
    "digits": digits,
    "noise": noise,
    "textures": textures,
    "strokes": strokes,
    "clouds": clouds,
    "shapes": shapes,
}
"""Function (count, (height, width), random draws) -> images, by name of the kind."""


def make(name: str, count: int, size: Size, seed: int) -> Tensor:
    """Return `count` images of a kind in MADE; the same seed gives the same images."""
    return MADE[name](count, size, torch.Generator().manual_seed(seed))


def _positions(size: Size) -> tuple[Tensor, Tensor]:
    y, x = torch.meshgrid(*(torch.arange(side, dtype=torch.float32) for side in size), indexing="ij")
    return y, x


def _two_colours(shares_N1HW: Tensor, draws: torch.Generator) -> Tensor:
    colours = torch.rand(2, len(shares_N1HW), 3, 1, 1, generator=draws)
    return shares_N1HW * colours[0] + (1 - shares_N1HW) * colours[1]


def _in_turn(kinds: list[Tensor]) -> Tensor:
    stacked = torch.stack(kinds)
    images = torch.arange(stacked.shape[1])
    taken: Tensor = stacked[images % len(kinds), images]
    return taken


def _column(flags_N: Tensor) -> Tensor:
    return flags_N.view(-1, 1, 1, 1)


def _bytes(images: Tensor) -> Tensor:
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)
