"""Squared norms of every parameter's gradient, made comparable: logarithm, then standardised with held-out knowns.

B batch, P parameter tensors, D coordinates kept (of all objectives together).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradosr.gradients import Rule, SquaredNorms

EPSILON = 1e-10
"""Smallest norm that counts, relative to the largest of the image: in float32, anything below it is rounding."""


class Norms:
    """Coordinates OBJECTIVE/PARAMETER: squared gradient norms of every parameter tensor, the paper's r(x)."""

    def __init__(self, objective: str) -> None:
        self._objective = objective

    def watch(self, rule: Rule, parameters: tuple[str, ...], grad: Tensor) -> None:
        """Ignore the gradient: the engine makes the norms."""

    def coordinates(self, norms: SquaredNorms) -> dict[str, Tensor]:
        """Name the norms, each [B], in named_parameters() order."""
        names = coordinate_names([self._objective], norms.names)
        return dict(zip(names, norms.values_BP.unbind(1), strict=True))


def coordinate_names(objectives: Sequence[str], parameters: Sequence[str]) -> tuple[str, ...]:
    """Name the coordinates of `representation`, OBJECTIVE/PARAMETER, in its order."""
    return tuple(f"{objective}/{parameter}" for objective in objectives for parameter in parameters)


def representation(norms: Sequence[SquaredNorms]) -> Tensor:
    """Put the squared norms of every objective side by side, [B, objectives * P]: the paper's r(x)."""
    return torch.cat([one.values_BP for one in norms], 1)


def log_norms(norms: Sequence[SquaredNorms]) -> Tensor:
    """Compute log(r / largest + eps) + log(largest), [B, objectives * P], float32.

    `largest` is the largest norm of an image under an objective.
    """
    return torch.cat([_log(one.values_BP.float()) for one in norms], 1)


def _log(values_BP: Tensor) -> Tensor:
    if not values_BP.shape[1]:
        return values_BP
    largest_B1 = values_BP.amax(1, keepdim=True).clamp_min(torch.finfo(values_BP.dtype).tiny)
    return torch.log(values_BP / largest_B1 + EPSILON) + torch.log(largest_B1)


@dataclass(frozen=True)
class Standardiser:
    """Zero mean and unit deviation per coordinate on the images it was fitted on; dead coordinates dropped."""

    kept_D: Tensor
    """Indices of the coordinates kept."""
    mean_D: Tensor
    std_D: Tensor

    @classmethod
    def fit(cls, values_BC: Tensor) -> "Standardiser":
        """Fit to values of known images; a coordinate that does not vary carries nothing and is dropped."""
        mean_C, std_C = values_BC.mean(0), values_BC.std(0)
        kept_D = torch.nonzero(std_C > 1e-4).flatten()
        return cls(kept_D, mean_C[kept_D], std_C[kept_D])

    def __call__(self, values_BC: Tensor) -> Tensor:
        """Standardise [B, C] to [B, D]."""
        return (values_BC[:, self.kept_D] - self.mean_D) / self.std_D

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Tensor]) -> "Standardiser":
        """Make a standardiser from arrays that have the names of its fields."""
        return cls(arrays["kept_D"], arrays["mean_D"], arrays["std_D"])

    def dropped(self, names: Sequence[str]) -> tuple[str, ...]:
        """Pick the names of the coordinates that are left out."""
        kept = set(self.kept_D.tolist())
        return tuple(name for i, name in enumerate(names) if i not in kept)
