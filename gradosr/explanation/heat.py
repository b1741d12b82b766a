"""Heat maps: where in an image its unknown score comes from, after Grad-CAM (Selvaraju et al., ICCV 2017).

With d_c(x) the activation of channel c at position x of the middle layer's input, less its mean over the image's
positions, g_c(x) the gradient of the unknown score there, and a_c the mean of g_c over the positions (Grad-CAM's
weight, equation 1),

    map(x) = sqrt(sum over c of max(0, a_c d_c(x)) * sum over c of max(0, g_c(x) d_c(x))),

smoothed by SMOOTHED cells: places that stand out in the image, by channels that raise the score, where they do so. The
second factor is as in LayerCAM (Jiang et al., IEEE TIP 2021). Deviations from Grad-CAM, chosen on one of the README's
networks (s0) by how often the map's peak lies in a square of something else (12 x 12 of 32 x 32 pixels: textures,
noise, digits) that was planted in a known image and made it unknown; 14 in 100 would by chance:

- The middle layer, not the last convolution: 87 against 15 in 100 by the first factor alone. The last layers tell the
  known classes apart, and what is missing of a class has no place; what is strange is seen in the middle.
- max(0, .) within the sum, not around it: 87 against 58. A channel that makes an image more known, and is active all
  over it, would otherwise drown the others.
- Both factors, and deviations from the image's mean: 93; on another network (s2), which had no part in this, 86, and
  64 of squares that hold a scaled-down image of an unknown class.

The norms of gradients are held constant: to follow them back would take a second derivative.

B images, C channels, h x w positions, H x W pixels, M middle channels.
"""

import base64
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from gradosr.detectors import Detector, Observation
from gradosr.gradients.activations import activations
from gradosr.scoring.observer import Observer

SIDE = 16
"""Rows and columns of a heat map."""
SMOOTHED = 2.0
"""Deviation of the Gaussian by which a map is smoothed, in its cells."""
PIXELS = 2**16
"""Most pixels in one pass, which keeps all activations: one image of 224 x 224, 64 of 32 x 32."""
MOST_PREFIXES = 8
"""Most tokens before those of the positions: class token, registers."""


@dataclass(frozen=True)
class Heat:
    """A heat map over the classifier's input."""

    values: NDArray[np.uint8]
    """SIDE x SIDE values, the first row uppermost; 255 where the score comes from most, 0 in the half of it
    where it comes from least."""
    of: tuple[str, ...]
    """Parts of the score that the map is of."""
    without: tuple[str, ...]
    """Parts that no gradient leads back from."""

    def facts(self) -> dict[str, Any]:
        """Return the map as plain data, its values in base64."""
        values = base64.b64encode(self.values.tobytes()).decode()
        return {"side": SIDE, "values": values, "of": list(self.of), "without": list(self.without)}


def heat_maps(observer: Observer, detector: Detector, images_BCHW: Tensor, seen: Observation) -> list[Heat | None]:
    """Return the heat map of each of the uint8 images, of which `seen` was seen; None where nothing has positions."""
    at_once = max(1, PIXELS // images_BCHW[0, 0].numel()) if len(images_BCHW) else 1
    pieces = torch.arange(len(images_BCHW)).split(at_once)
    return [one for rows in pieces for one in _heat_maps(observer, detector, images_BCHW[rows], seen[rows])]


def _heat_maps(observer: Observer, detector: Detector, images_BCHW: Tensor, seen: Observation) -> list[Heat | None]:
    passed = activations(observer.engine, observer.normalised(images_BCHW))
    if passed.middle is None or passed.middle_BM is None:
        return [None] * len(images_BCHW)
    with torch.enable_grad():
        features_BF = None if passed.features_BF is None else passed.features_BF.float()
        logits_BK, middle_BM = passed.logits_BK.float(), passed.middle_BM.float()
        parts = detector.contributions(replace(seen, logits_BK=logits_BK, features_BF=features_BF, middle_BM=middle_BM))
        traced = {name: values_B for name, values_B in parts.items() if values_B.requires_grad}
        if not traced:  # a score of gradients alone: the sureness that they are gradients of stands in for it
            traced = {"max_logit": -logits_BK.amax(1)}
        total = torch.stack(list(traced.values())).sum()
        (gradient,) = torch.autograd.grad(total, passed.middle, materialize_grads=True)
    pixels = (images_BCHW.shape[2], images_BCHW.shape[3])
    weights_BChw, values_BChw = (spatial(one.detach().float(), len(seen), pixels) for one in (gradient, passed.middle))
    if weights_BChw is None or values_BChw is None:
        return [None] * len(images_BCHW)
    maps_BSS = smoothed(weighted(weights_BChw, values_BChw)).cpu()
    without = tuple(name for name in parts if name not in traced)
    return [Heat(_bytes(one_SS), tuple(traced), without) for one_SS in maps_BSS]


def weighted(gradient_BChw: Tensor, values_BChw: Tensor) -> Tensor:
    """Sum what raises the score, by each channel's mean gradient and by that at the position, [B, h, w]."""
    apart_BChw = values_BChw - values_BChw.mean((2, 3), keepdim=True)
    mean_BC11 = gradient_BChw.mean((2, 3), keepdim=True)
    by_channel_Bhw, by_place_Bhw = ((one * apart_BChw).relu().sum(1) for one in (mean_BC11, gradient_BChw))
    return (by_channel_Bhw * by_place_Bhw).sqrt()


def spatial(values: Tensor, images: int, pixels: tuple[int, int]) -> Tensor | None:
    """Lay activations out as [B, C, h, w], with h : w as of the pixels; None if they are not of the images' positions.

    Known are channels first (convolutions), channels last, and tokens [B, T, C], some before those of the positions.
    """
    if values.dim() == 4 and len(values) == images:
        first, last = values.shape[2:], values.shape[1:3]
        if _alike(first, pixels):
            return values
        return values.permute(0, 3, 1, 2) if _alike(last, pixels) else None
    if values.dim() == 3 and len(values) == images:
        for prefixes in range(MOST_PREFIXES + 1):
            tokens = values.shape[1] - prefixes
            height = round(math.sqrt(max(0, tokens) * pixels[0] / pixels[1]))
            if height and tokens % height == 0 and _alike((height, tokens // height), pixels):
                return values[:, prefixes:].transpose(1, 2).reshape(images, -1, height, tokens // height)
    return None


def _alike(positions: tuple[int, ...], pixels: tuple[int, int]) -> bool:
    """Return whether positions have the shape of the pixels, up to rounding, and are more than one."""
    height, width = positions
    return height * width > 1 and abs(height * pixels[1] - width * pixels[0]) < max(pixels)


def smoothed(maps_Bhw: Tensor) -> Tensor:
    """Return maps of SIDE x SIDE cells, smoothed by a Gaussian."""
    maps_B1SS = F.interpolate(maps_Bhw[:, None], (SIDE, SIDE), mode="bilinear", antialias=True)
    reach = math.ceil(3 * SMOOTHED)
    kernel = torch.exp(-torch.arange(-reach, reach + 1.0, device=maps_Bhw.device).square() / (2 * SMOOTHED**2))
    kernel = kernel / kernel.sum()
    for shape, sides in (((1, 1, 1, -1), (reach, reach, 0, 0)), ((1, 1, -1, 1), (0, 0, reach, reach))):
        maps_B1SS = F.conv2d(F.pad(maps_B1SS, sides, mode="replicate"), kernel.view(shape))
    return maps_B1SS[:, 0]


def _bytes(map_SS: Tensor) -> NDArray[np.uint8]:
    least, most = map_SS.median(), map_SS.max()
    shares_SS = (map_SS - least).clamp_min(0) / (most - least).clamp_min(torch.finfo(torch.float32).tiny)
    return np.asarray((shares_SS * 255).round().byte().numpy())
