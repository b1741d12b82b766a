"""Statistics of activation gradients: GAIA (Chen et al., NeurIPS 2023, arXiv 2311.09620).

Sources: the paper and its authors' code (JGEthanChen/GAIA-OOD, cal_method.py and hook.py).
Places: the outputs of all normalisation layers (BatchNorm, LayerNorm, GroupNorm) that have parameters, before any
activation, as in the authors' code; in a classifier without any, the outputs of all convolutions. Whether the engine
makes a BatchNorm part of its convolution changes nothing. A layer whose gradients the engine takes by its fallback has
no place; for a layer that is called several times, the mean over its calls counts.
Deviations: the authors pick layers by hand per architecture (for the averages of ResNets the last two blocks, of BiT
the last one), and their code covers convolutional networks alone; here every layer is a coordinate, and a detector
picks.

B batch, Q positions, C channels (the first dimension of the layer's parameter), L places.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from gradosr.errors import ClassifierError
from gradosr.gradients import RULES, Rule, SquaredNorms

NORMALISATIONS = tuple(RULES[function] for function in (F.batch_norm, F.layer_norm, F.group_norm))
CONVOLUTIONS = tuple(RULES[function] for function in (F.conv1d, F.conv2d))


class Activations(ABC):
    """A statistic per channel of the gradients at every place, under one objective; its mean per place is a coordinate.

    Coordinates are named OBJECTIVE/NAME/LAYER, in named_parameters() order.
    """

    name: str

    def __init__(self, objective: str) -> None:
        self._objective = objective
        self._rules = CONVOLUTIONS
        self._calls: dict[str, list[Tensor]] = {}

    def watch(self, rule: Rule, parameters: tuple[str, ...], grad: Tensor) -> None:
        """Take the statistic of a gradient that belongs to a place."""
        if rule in NORMALISATIONS and self._rules is CONVOLUTIONS:
            self._rules = NORMALISATIONS
            self._calls.clear()
        if rule in self._rules:
            self._calls.setdefault(parameters[0], []).append(self.statistic(grad))

    def channels(self) -> dict[str, Tensor]:
        """Average the statistic over the calls of each layer: [B, C] by the name of the layer's first parameter.

        Raises ClassifierError where there is no place.
        """
        if not self._calls:
            raise ClassifierError(
                f"{self.name} needs a normalisation layer or a convolution, and this classifier has none with a rule"
            )
        return {place: torch.stack(calls).mean(0) for place, calls in self._calls.items()}

    def coordinates(self, norms: SquaredNorms) -> dict[str, Tensor]:
        """Average over the channels of each place, [B]. Raises ClassifierError where there is no place."""
        channels = self.channels()
        return {
            f"{self._objective}/{self.name}/{_layer(place)}": channels[place].mean(1)
            for place in norms.names
            if place in channels
        }

    @staticmethod
    @abstractmethod
    def statistic(grad: Tensor) -> Tensor:
        """Compute the statistic per channel, [B, C], of a gradient [B, Q, C, ...]."""


def _layer(parameter: str) -> str:
    return parameter.removesuffix(".weight").removesuffix(".bias")


class ZeroShares(Activations):
    """Share of exactly zero gradients, 0 to 1; lower = more unknown ("zero-deflation abnormality").

    The authors' objective is `max_logit`. Zeros come from closed ReLUs, so other objectives give almost the same,
    unless a saturated loss (`predicted` of a sure classifier) makes them all zero; and a classifier with smooth
    activations has none. In float32 an activation within rounding of a ReLU's corner may fall on either side.
    """

    name = "gaia_zeros"

    @staticmethod
    def statistic(grad: Tensor) -> Tensor:
        # A sum of |sign| takes a quarter of the time of a comparison and its sum, and is exact to 2^24 elements.
        nonzero_BC = grad.sign().abs_().sum(_places(grad))
        size = grad[0].numel() // grad.shape[2]
        return (size - nonzero_BC) / size


class ChannelAverages(Activations):
    """Mean square over channels of the gradient's mean over positions; higher = more unknown ("channel-wise average").

    The mean over positions is GradCAM's weight of a channel; the authors take its square in their score.
    Deviation: in their two-stage fusion the gradients of the summed last feature map, at each layer, are divided by
    the root of the mean magnitude of those of the summed log-softmax, at that map. Here it is one stage: the
    objective's own gradients. Under `uniform` these are the summed log-softmax's times -1/classes.
    """

    name = "gaia_averages"

    @staticmethod
    def statistic(grad: Tensor) -> Tensor:
        return grad.mean(_places(grad)).square()


def _places(grad: Tensor) -> list[int]:
    return [1, *range(3, grad.dim())]


def gaia_z(zero_shares: Sequence[Tensor]) -> Tensor:
    """Compute GAIA-Z [B] from zero shares [B, C] per place: the mean squared share of nonzeros over all channels.

    Higher = more unknown. It is the authors' `cal_zero`; the paper's Frobenius norm of the matrix of abnormalities is
    the root of a multiple of it, the same order.
    """
    return (1 - torch.cat(list(zero_shares), 1)).square().mean(1)


def gaia_a(squared_averages: Sequence[Tensor]) -> Tensor:
    """Compute GAIA-A [B] from squared channel averages [B, C] per place: their mean over all channels.

    Higher = more unknown. It is the authors' `cal_grad_value` without the division by the output component (see
    ChannelAverages).
    """
    return torch.cat(list(squared_averages), 1).mean(1)


class GaiaZ(ZeroShares):
    """One coordinate, OBJECTIVE/gaia_z: `gaia_z` of all places."""

    name = "gaia_z"

    def coordinates(self, norms: SquaredNorms) -> dict[str, Tensor]:
        """Score all places together, [B]. Raises ClassifierError where there is no place."""
        return {f"{self._objective}/{self.name}": gaia_z(list(self.channels().values()))}


class GaiaA(ChannelAverages):
    """One coordinate, OBJECTIVE/gaia_a: `gaia_a` of all places."""

    name = "gaia_a"

    def coordinates(self, norms: SquaredNorms) -> dict[str, Tensor]:
        """Score all places together, [B]. Raises ClassifierError where there is no place."""
        return {f"{self._objective}/{self.name}": gaia_a(list(self.channels().values()))}
