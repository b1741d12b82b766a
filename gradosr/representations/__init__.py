"""What a detector sees of an image. Imports torch and the gradients alone.

One variant per file, one line each in REPRESENTATIONS. A variant is told of the gradients of a pass that the engine
makes anyway; what it adds to the time of that pass is stated beside its line.
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
"""Name -> what makes a batch's representation under an objective, given the objective's name.

Extra time: CPU seconds on one core beside those of the pass under one objective, torchvision's resnet18 at 64 x 64,
batch 8, float32, medians of 15 runs; half of it in a ViT of width 192. An objective more costs a backward pass more.
"""


@dataclass(frozen=True)
class Represented:
    """B images by C coordinates."""

    names: tuple[str, ...]
    values_BC: Tensor
    """In the classifier's precision, as defined: no logarithm, not standardised."""


def represent(
    engine: GradientEngine, images_BCHW: Tensor, names: Sequence[str], objectives: Sequence[str]
) -> Represented:
    """Coordinates of the named representations under every objective, from one forward and one backward pass each."""
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
