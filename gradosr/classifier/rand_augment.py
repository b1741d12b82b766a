"""RandAugment (Cubuk et al., 2020) for a whole batch at once, on any device and without waiting for it.

Every image gets its own operations, drawn and applied as in torchvision.transforms.v2.RandAugment at its default
magnitude, 9 of 30. That class processes images one by one, in 0.3 ms each. Here, the images of a batch that drew the
same operation are changed together. The operations are drawn on the CPU, so that a seed has the same effect on any
device.

b images that share an operation, H x W pixels.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional

LEVEL = 0.3
"""Magnitude as a share of each operation's range: 9 of 30."""
SHEAR = 0.3 * LEVEL
"""Shear in pixels per pixel."""
SHIFT = 150 / 331 * LEVEL
"""Shift as a share of the side."""
ANGLE = math.radians(30 * LEVEL)
BLEND = 0.9 * LEVEL
BITS = round(8 - 4 * LEVEL)
"""Number of bits that posterizing keeps."""
THRESHOLD = 255 * (1 - LEVEL)
"""Value from which solarizing inverts."""


def rand_augmented(images_BCHW: Tensor, operations: int, generator: torch.Generator) -> Tensor:
    """Apply `operations` random operations to each of the uint8 images [B, 3, H, W]; `generator` is on the CPU."""
    batch, device = len(images_BCHW), images_BCHW.device
    for _ in range(operations):
        kind_B = torch.randint(len(OPERATIONS), (batch,), generator=generator)
        sign_B = torch.randint(2, (batch,), generator=generator).float() * 2 - 1
        order_B, counts = kind_B.argsort(stable=True), kind_B.bincount(minlength=len(OPERATIONS)).tolist()
        order_B, sign_B111 = (one.to(device, non_blocking=True) for one in (order_B, sign_B[order_B].view(-1, 1, 1, 1)))
        shares = zip(OPERATIONS.values(), images_BCHW[order_B].split(counts), sign_B111.split(counts), strict=True)
        changed = torch.cat([operation(images, sign) for operation, images, sign in shares if len(images)])
        images_BCHW = torch.empty_like(images_BCHW).index_copy_(0, order_B, changed)
    return images_BCHW


def _sheared_x(images_bCHW: Tensor, sign_b111: Tensor) -> Tensor:
    y, x = _positions(images_bCHW)
    return _taken_from(images_bCHW, x + SHEAR * sign_b111 * (y + images_bCHW.shape[2] / 2), y)


def _sheared_y(images_bCHW: Tensor, sign_b111: Tensor) -> Tensor:
    y, x = _positions(images_bCHW)
    return _taken_from(images_bCHW, x, y + SHEAR * sign_b111 * (x + images_bCHW.shape[3] / 2))


def _shifted_x(images_bCHW: Tensor, sign_b111: Tensor) -> Tensor:
    y, x = _positions(images_bCHW)
    return _taken_from(images_bCHW, x - int(SHIFT * images_bCHW.shape[3]) * sign_b111, y)


def _shifted_y(images_bCHW: Tensor, sign_b111: Tensor) -> Tensor:
    y, x = _positions(images_bCHW)
    return _taken_from(images_bCHW, x, y - int(SHIFT * images_bCHW.shape[2]) * sign_b111)


def _rotated(images_bCHW: Tensor, sign_b111: Tensor) -> Tensor:
    y, x = _positions(images_bCHW)
    cos, sin = math.cos(ANGLE), math.sin(ANGLE) * sign_b111
    return _taken_from(images_bCHW, cos * x - sin * y, sin * x + cos * y)


def _brightened(images_bCHW: Tensor, sign_b111: Tensor) -> Tensor:
    return _bytes(images_bCHW * (1 + BLEND * sign_b111))


def _coloured(images_bCHW: Tensor, sign_b111: Tensor) -> Tensor:
    return _away_from(functional.rgb_to_grayscale(images_bCHW), images_bCHW, sign_b111)


def _contrasted(images_bCHW: Tensor, sign_b111: Tensor) -> Tensor:
    grey_b1HW = functional.rgb_to_grayscale(images_bCHW)
    return _away_from(grey_b1HW.float().mean((1, 2, 3), keepdim=True), images_bCHW, sign_b111)


def _sharpened(images_bCHW: Tensor, sign_b111: Tensor) -> Tensor:
    """Sharpen relative to a mean of nine pixels that counts the centre fivefold; pixels at the edges stay unchanged."""
    inner = images_bCHW[..., 1:-1, 1:-1].float()
    blurred = ((9 * F.avg_pool2d(images_bCHW.float(), 3, 1) + 4 * inner) / 13).round()
    changed = images_bCHW.clone()
    changed[..., 1:-1, 1:-1] = _away_from(blurred, inner, sign_b111)
    return changed


def _autocontrasted(images_bCHW: Tensor, _sign: Tensor) -> Tensor:
    low, high = images_bCHW.amin((2, 3), keepdim=True).float(), images_bCHW.amax((2, 3), keepdim=True).float()
    spread = (images_bCHW - low) / ((high - low) * (1 / 255))
    return _bytes(torch.where(high > low, spread, images_bCHW.float()))


OPERATIONS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Identity": lambda images, _: images,
    "ShearX": _sheared_x,
    "ShearY": _sheared_y,
    "TranslateX": _shifted_x,
    "TranslateY": _shifted_y,
    "Rotate": _rotated,
    "Brightness": _brightened,
    "Color": _coloured,
    "Contrast": _contrasted,
    "Sharpness": _sharpened,
    "Posterize": lambda images, _: images & (256 - 2 ** (8 - BITS)),
    "Solarize": lambda images, _: torch.where(images >= THRESHOLD, 255 - images, images),
    "AutoContrast": _autocontrasted,
    "Equalize": lambda images, _: functional.equalize(images),
}
"""Operations by torchvision's name: (uint8 images [b, 3, H, W], sign of magnitude [b, 1, 1, 1]) -> uint8 images."""


def _positions(images_bCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Return the positions of the pixels from the centre: y [H, 1] and x [1, W]."""
    y, x = (torch.arange(side, device=images_bCHW.device) - (side - 1) / 2 for side in images_bCHW.shape[2:])
    return y[:, None], x[None, :]


def _taken_from(images_bCHW: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Take each pixel from the nearest source position, black if outside; x and y broadcast to [b, 1, H, W]."""
    batch, _, height, width = images_bCHW.shape
    x, y = ((2 / side * one).expand(batch, 1, height, width) for side, one in ((width, x), (height, y)))
    grid_bHW2 = torch.stack([x[:, 0], y[:, 0]], 3)
    return F.grid_sample(images_bCHW.float(), grid_bHW2, "nearest", "zeros", align_corners=False).to(torch.uint8)


def _away_from(others: Tensor, images_bCHW: Tensor, sign_b111: Tensor) -> Tensor:
    """Blend images with others, or extrapolate away from them, depending on the sign."""
    factor_b111 = 1 + BLEND * sign_b111
    return _bytes(images_bCHW * factor_b111 + others * (1 - factor_b111))


def _bytes(values: Tensor) -> Tensor:
    return values.clamp(0, 255).to(torch.uint8)
