"""One mean per class and one covariance of all classes (Lee et al., "A Simple Unified Framework", NeurIPS 2018).

B images, K classes that were seen, F features.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

SHRINKAGE = 0.05
"""Share of the covariance that a multiple of the identity replaces: with few images the inverse would be noise."""
LEAST = 1e-3
"""Least deviation of a feature, as a share of the mean deviation; a smaller one is raised to it."""


@dataclass(frozen=True)
class ClassGaussian:
    """A mean per class and one covariance, for squared Mahalanobis distances."""

    mean_KF: Tensor
    whitening_FF: Tensor
    """Matrix after which distances are Euclidean."""

    @classmethod
    def fit(cls, values_BF: Tensor, labels_B: Tensor, shrinkage: float = SHRINKAGE) -> "ClassGaussian":
        """Fit a mean to each class that has an image; one label for all images makes a single Gaussian."""
        _, index_B = labels_B.unique(return_inverse=True)
        counts_K1 = torch.bincount(index_B)[:, None]
        sums_KF = values_BF.new_zeros(len(counts_K1), values_BF.shape[1]).index_add_(0, index_B, values_BF)
        mean_KF = sums_KF / counts_K1
        std_F = values_BF.std(0)
        std_F = std_F.clamp_min((LEAST * std_F.mean()).clamp_min(torch.finfo(std_F.dtype).tiny))
        rest_BF = ((values_BF - mean_KF[index_B]) / std_F).double()
        covariance_FF = rest_BF.T @ rest_BF / len(rest_BF)
        level = covariance_FF.diagonal().mean().clamp_min(torch.finfo(std_F.dtype).eps)
        identity_FF = torch.eye(len(covariance_FF), dtype=torch.float64, device=covariance_FF.device)
        shrunk_FF = (1 - shrinkage) * covariance_FF + shrinkage * level * identity_FF
        whitening_FF = torch.linalg.cholesky(torch.linalg.inv(shrunk_FF)).to(values_BF) / std_F[:, None]
        return cls(mean_KF, whitening_FF)

    def squared_distances(self, values_BF: Tensor) -> Tensor:
        """Measure the squared distances to every class, [B, K]."""
        # Centred first: cdist multiplies out, so an offset that all points share would cost it digits.
        centre_F = self.mean_KF.mean(0)
        points_BF, means_KF = ((one - centre_F) @ self.whitening_FF for one in (values_BF, self.mean_KF))
        return torch.cdist(points_BF, means_KF).square()
