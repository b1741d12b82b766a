"""Baselines of distances between penultimate features. B images, N fitting images, K classes, F features."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn import functional as F

from gradosr.detectors.baselines.baseline import Baseline
from gradosr.detectors.gaussian import ClassGaussian
from gradosr.detectors.observation import Known, Observation

NEIGHBOUR = 10
"""KNN's k. The authors take 50 for the 50,000 training images of CIFAR-10; among a few hundred held-out images the
50th neighbour would belong to another class."""
AT_ONCE = 2**24
"""Number of similarities, B * N, held in memory at once."""
TINY = torch.finfo(torch.float32).tiny
EPSILON = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Knn(Baseline):
    """Distance to the k-th nearest fitting image, features scaled to length 1 (Sun et al., ICML 2022)."""

    bank_NF: Tensor
    """Features of all fitting images."""

    @classmethod
    def fit(cls, known: Known, settings: object = None) -> "Knn":
        return cls(F.normalize(known.observation.features()))

    def score(self, observation: Observation) -> Tensor:
        """Return distances [B], between 0 and 2."""
        pieces = F.normalize(observation.features()).split(max(1, AT_ONCE // len(self.bank_NF)))
        return torch.cat([self._distance(piece_BF) for piece_BF in pieces])

    def _distance(self, features_BF: Tensor) -> Tensor:
        # The similarities choose the neighbour; their square root would cost the distance half its digits.
        similarity_BN = features_BF @ self.bank_NF.T
        nearest_BN = similarity_BN.topk(min(NEIGHBOUR, len(self.bank_NF))).indices
        distance_B: Tensor = vector_norm(features_BF - self.bank_NF[nearest_BN[:, -1]], dim=1)
        return distance_B


@dataclass(frozen=True)
class Mahalanobis(Baseline):
    """Squared Mahalanobis distance of the penultimate features to the nearest class (Lee et al., NeurIPS 2018).

    Deviations: no input noise and no other layers, whose weights the authors learn from unknown images; the
    covariance is shrunk (see gaussian.SHRINKAGE).
    """

    mean_KF: Tensor
    whitening_FF: Tensor

    @classmethod
    def fit(cls, known: Known, settings: object = None) -> "Mahalanobis":
        """Fit a mean per class, save those without an image, and one covariance."""
        return cls(**vars(ClassGaussian.fit(known.observation.features(), known.labels_B)))

    def score(self, observation: Observation) -> Tensor:
        return ClassGaussian(self.mean_KF, self.whitening_FF).squared_distances(observation.features()).amin(1)


@dataclass(frozen=True)
class RelativeMahalanobis(Mahalanobis):
    """Mahalanobis distance less the distance to one Gaussian of all images (Ren et al., 2021, arXiv 2106.09022)."""

    all_mean_1F: Tensor
    all_whitening_FF: Tensor

    @classmethod
    def fit(cls, known: Known, settings: object = None) -> "RelativeMahalanobis":
        """Fit both Gaussians, shrunk alike."""
        classes = Mahalanobis.fit(known)
        one = ClassGaussian.fit(known.observation.features(), torch.zeros_like(known.labels_B))
        return cls(classes.mean_KF, classes.whitening_FF, one.mean_KF, one.whitening_FF)

    def score(self, observation: Observation) -> Tensor:
        one = ClassGaussian(self.all_mean_1F, self.all_whitening_FF)
        return super().score(observation) - one.squared_distances(observation.features())[:, 0]


@dataclass(frozen=True)
class Vim(Baseline):
    """Virtual-logit matching (Wang et al., CVPR 2022): length outside the principal subspace, less logsumexp."""

    origin_F: Tensor
    residual_FR: Tensor
    """Orthonormal basis of the complement of the principal subspace."""
    alpha: Tensor
    """Factor that makes the mean residual as large as the mean max logit."""

    @classmethod
    def fit(cls, known: Known, settings: object = None) -> "Vim":
        """Find the principal subspace. Raises ClassifierError where no linear layer makes the logits."""
        head, features_BF = known.last_layer(), known.observation.features()
        origin_F = -torch.linalg.pinv(head.weight_KF.double()) @ head.bias_K.double()
        rest_BF = features_BF.double() - origin_F
        images, width = rest_BF.shape
        vectors_FF = torch.linalg.eigh(rest_BF.T @ rest_BF).eigenvectors  # the principal ones last
        residual_FR = vectors_FF[:, : width - principal_dimension(width, images)]
        least = (EPSILON * vector_norm(rest_BF, dim=1).mean()).clamp_min(TINY)
        virtual = vector_norm(rest_BF @ residual_FR, dim=1).mean().clamp_min(least)
        alpha = known.observation.logits_BK.amax(1).mean() / virtual
        return cls(origin_F.to(features_BF), residual_FR.to(features_BF), alpha.to(features_BF))

    def score(self, observation: Observation) -> Tensor:
        """Return scores [B], of which the authors' probability of the virtual class is a monotone function."""
        residual_BR = (observation.features() - self.origin_F) @ self.residual_FR
        virtual_B: Tensor = self.alpha * vector_norm(residual_BR, dim=1)
        return virtual_B - observation.logits_BK.logsumexp(1)


def principal_dimension(width: int, images: int) -> int:
    """Choose as the authors do: 1,000 of 2,048 features or more, 512 of 768 or more, half of fewer; below `images`."""
    authors = 1000 if width >= 2048 else 512 if width >= 768 else width // 2
    return min(authors, images - 1)
