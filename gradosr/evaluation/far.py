"""Images that show nothing, made by code: what no classifier of photographs has seen. uint8 [N, 3, H, W].

digits     scikit-learn's hand-written digits, light on dark and dark on light, some in two random colours
noise      uniform, Gaussian, binary, per pixel or per channel, and salt and pepper on a flat colour
textures   stripes, waves, checks, rings, moiré and blocks of random period, angle and colours
"""

import math
from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

Size = tuple[int, int]


def digits(count: int, size: Size, draws: torch.Generator) -> Tensor:
    """The first `count` of the 1,797, enlarged; again from the start beyond."""
    shapes_N1HW = torch.from_numpy(load_digits().images).float()[:, None] / 16
    shapes_N1HW = shapes_N1HW[torch.arange(count) % len(shapes_N1HW)]
    ink_N1HW = F.interpolate(shapes_N1HW, size, mode="bicubic").clamp(0, 1)
    plain_N3HW = ink_N1HW.expand(-1, 3, -1, -1)
    kind_N = torch.arange(count) % 3
    images = torch.where(_column(kind_N == 0), plain_N3HW, 1 - plain_N3HW)
    return _bytes(torch.where(_column(kind_N == 2), _two_colours(ink_N1HW, draws), images))


def noise(count: int, size: Size, draws: torch.Generator) -> Tensor:
    """Five kinds in turn."""
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
    """Six kinds in turn."""
    y, x = torch.meshgrid(*(torch.arange(side, dtype=torch.float32) for side in size), indexing="ij")

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


MADE: dict[str, Callable[[int, Size, torch.Generator], Tensor]] = {
    "digits": digits,
    "noise": noise,
    "textures": textures,
}
"""By name: (count, (height, width), random draws) -> images."""


def make(name: str, count: int, size: Size, seed: int) -> Tensor:
    """`count` images of a name of MADE; the same for the same seed."""
    return MADE[name](count, size, torch.Generator().manual_seed(seed))


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
