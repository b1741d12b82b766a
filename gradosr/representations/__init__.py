"""Representations: what a detector can see of an image's gradients. Imports torch and the gradients alone.

A representation is a Watcher (see gradosr.gradients): a class in a file of this package, and a line in REPRESENTATIONS.
The engine shows it every gradient of a pass that is made anyway; the line states how much time it adds to that pass.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradosr.gradients import GradientEngine, Watcher
from gradosr.representations.activations import ChannelAverages, GaiaA, GaiaZ, ZeroShares, gaia_a, gaia_z
from gradosr.representations.last_layer import GradNorm, grad_norm
from gradosr.representations.norms import Norms, Standardiser, coordinate_names, log_norms, representation

REPRESENTATIONS: dict[str, Callable[[str], Watcher]] = {
    "norms": Norms,  # squared gradient norm per parameter tensor (Lee & AlRegib, ICIP 2021): the pass itself
    "gaia_zeros": ZeroShares,  # share of zero activation gradients per layer (GAIA, NeurIPS 2023): 3 %
    "gaia_averages": ChannelAverages,  # their channel averages, squared, per layer (GAIA, NeurIPS 2023): 2 %
    "gaia_z": GaiaZ,  # GAIA-Z, the score of all channels' zero shares: as gaia_zeros
    "gaia_a": GaiaA,  # GAIA-A, the score of all channels' averages: as gaia_averages
    "gradnorm": GradNorm,  # L1 norm of the last layer's weight gradient (GradNorm, NeurIPS 2021): below 0.5 %
}
"""Classes by the name of their representation; each is called with the name of the objective, once per batch.

The extra time is in CPU seconds on one core, as a share of the pass under one objective: torchvision's resnet18 at
64 x 64, batch 8, float32, medians of 15 runs; in a ViT of width 192 it is half. Every further objective costs one more
backward pass.
"""


@dataclass(frozen=True)
class Represented:
    """The values of B images at C named coordinates."""

    names: tuple[str, ...]
    values_BC: Tensor
    """Values as defined, in the classifier's precision: no logarithm, not standardised."""


def represent(
    engine: GradientEngine, images_BCHW: Tensor, names: Sequence[str], objectives: Sequence[str]
) -> Represented:
    """Compute the named representations under every objective, from one forward pass and one backward pass each."""
    norms = engine(images_BCHW, objectives, [REPRESENTATIONS[name] for name in names])
    columns = {name: values for one in norms for name, values in one.watched.items()}
    return Represented(tuple(columns), torch.stack(list(columns.values()), 1))


__all__ = [
    "REPRESENTATIONS",
    "ChannelAverages",
    "GaiaA",
    "GaiaZ",
    "GradNorm",
    "Norms",
    "Represented",
    "Standardiser",
    "ZeroShares",
    "coordinate_names",
    "gaia_a",
    "gaia_z",
    "grad_norm",
    "log_norms",
    "represent",
    "representation",
]
