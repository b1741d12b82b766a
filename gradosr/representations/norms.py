"""Squared norms of every parameter's gradient, made comparable: logarithm, then standardised with held-out knowns.

B batch, P parameter tensors, D coordinates kept (of all objectives together).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradosr.gradients import Rule, SquaredNorms

EPSILON = 1e-10
"""Relative to the image's largest norm: what lies below it is rounding, in float32, not signal."""


class Norms:
    """Squared gradient norms of every parameter tensor, as the paper's r(x): coordinates OBJECTIVE/PARAMETER."""

    def __init__(self, objective: str) -> None:
        self._objective = objective

    def watch(self, rule: Rule, parameters: tuple[str, ...], grad: Tensor) -> None:
        """Nothing of it is used: the engine makes the norms."""

    def coordinates(self, norms: SquaredNorms) -> dict[str, Tensor]:
        """In named_parameters() order, each [B]."""
        names = coordinate_names([self._objective], norms.names)
        return dict(zip(names, norms.values_BP.unbind(1), strict=True))


def coordinate_names(objectives: Sequence[str], parameters: Sequence[str]) -> tuple[str, ...]:
    """OBJECTIVE/PARAMETER, in the order of `representation`."""
    return tuple(f"{objective}/{parameter}" for objective in objectives for parameter in parameters)


def representation(norms: Sequence[SquaredNorms]) -> Tensor:
    """Squared norms of every objective side by side, [B, objectives * P], as the paper's r(x)."""
    return torch.cat([one.values_BP for one in norms], 1)


def log_norms(norms: Sequence[SquaredNorms]) -> Tensor:
    """log(r / largest + eps) + log(largest), [B, objectives * P], float32; `largest` per image and objective."""
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
        """A coordinate whose value never leaves its floor, or never varies, carries nothing and is dropped."""
        mean_C, std_C = values_BC.mean(0), values_BC.std(0)
        kept_D = torch.nonzero(std_C > 1e-4).flatten()
        return cls(kept_D, mean_C[kept_D], std_C[kept_D])

    def __call__(self, values_BC: Tensor) -> Tensor:
        """[B, C] to [B, D]."""
        return (values_BC[:, self.kept_D] - self.mean_D) / self.std_D

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Tensor]) -> "Standardiser":
        """From arrays named as its fields."""
        return cls(arrays["kept_D"], arrays["mean_D"], arrays["std_D"])

    def dropped(self, names: Sequence[str]) -> tuple[str, ...]:
        """Names of the coordinates left out."""
        kept = set(self.kept_D.tolist())
        return tuple(name for i, name in enumerate(names) if i not in kept)
