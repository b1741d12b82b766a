"""The parts of the default detector's score, one class each; see gradosr.detectors.one_class.

B images, K classes, D coordinates kept, F features, M middle channels, n images of a class.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gradosr.detectors.gaussian import ClassGaussian
from gradosr.detectors.observation import Known, Observation
from gradosr.detectors.scaling import scaled_energy
from gradosr.gradients import Head
from gradosr.representations import Standardiser

if TYPE_CHECKING:
    from gradosr.config import OneClassSettings

PRIOR = 10
"""Number of images that the pooled estimate counts for, beside the n of a class."""
KEPT = 0.1
"""Share of the features that count as the largest in SCALE."""
BEYOND = 2.5
"""Deviations of `middle` that 2 to 3 % of the known images pass."""
FOLDS = 10
"""Number of folds, each in turn left out of the middle's Gaussian: the images it is fitted on lie too near to it."""


class Part(ABC):
    """A quantity that is higher for more unknown images; one that learns nothing has but a `score`."""

    @classmethod
    def fit(cls, known: Known, settings: "OneClassSettings") -> "Part":
        """Fit to known images; Absent where the classifier cannot give the part."""
        return cls()

    @abstractmethod
    def score(self, seen: Observation) -> Tensor:
        """Measure each image, [B]."""

    def score_as_fresh(self, known: Known) -> Tensor:
        """Measure the images that the part was fitted on as if it had not been, [B]."""
        return self.score(known.observation)

    def arrays(self) -> dict[str, Tensor]:
        """Return everything that a bundle stores of the part, by name."""
        return {}

    def dropped(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Pick from the coordinates' names those that carried nothing."""
        return ()

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Tensor]) -> "Part":
        """Make the part from a bundle's arrays. Raises KeyError for one that is missing."""
        return cls()

    @staticmethod
    def wanted(weights: Mapping[str, float]) -> bool:
        """Tell whether the score needs the part, given the weights of all parts."""
        return True


@dataclass(frozen=True)
class Absent(Part):
    """A part that is left out: 0 for every image."""

    def score(self, seen: Observation) -> Tensor:
        return seen.logits_BK.new_zeros(len(seen))


@dataclass(frozen=True)
class MaxLogit(Part):
    """The max logit, negated."""

    def score(self, seen: Observation) -> Tensor:
        return -seen.logits_BK.amax(1)


@dataclass(frozen=True)
class Gradients(Part):
    """Log-norms, projected on the direction in which images of the predicted class lose confidence."""

    standardiser: Standardiser
    """Standardiser of the log-norms."""
    direction_KD: Tensor
    """Direction per predicted class, the sum over the objectives."""
    offset_K: Tensor
    """Mean projection of the known images of each predicted class."""

    @classmethod
    def fit(cls, known: Known, settings: "OneClassSettings") -> "Gradients":
        """Fit each objective's directions apart; the coordinates are shared evenly among the objectives, in order."""
        seen, objectives = known.observation, len(settings.objectives)
        max_logit_B, predicted_B = seen.logits_BK.max(1)
        standardiser = Standardiser.fit(seen.log_norms_BC)
        objective_D = standardiser.kept_D * objectives // max(1, seen.log_norms_BC.shape[1])
        z_BD, confidence_B = standardiser(seen.log_norms_BC), _standardised(max_logit_B)
        fits = [
            _directions(z_BD * (objective_D == one), confidence_B, predicted_B, seen.logits_BK.shape[1])
            for one in range(objectives)
        ]
        direction_KD, offset_K = (torch.stack(one).sum(0) for one in zip(*fits, strict=True))
        return cls(standardiser, direction_KD, offset_K)

    def score(self, seen: Observation) -> Tensor:
        predicted_B = seen.logits_BK.max(1).indices
        z_BD = self.standardiser(seen.log_norms_BC)
        projection_B: Tensor = torch.linalg.vecdot(z_BD, self.direction_KD[predicted_B])
        return projection_B - self.offset_K[predicted_B]

    def arrays(self) -> dict[str, Tensor]:
        return {"direction_KD": self.direction_KD, "offset_K": self.offset_K, **asdict(self.standardiser)}

    def dropped(self, names: tuple[str, ...]) -> tuple[str, ...]:
        return self.standardiser.dropped(names)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Tensor]) -> "Gradients":
        return cls(Standardiser.from_arrays(arrays), arrays["direction_KD"], arrays["offset_K"])


@dataclass(frozen=True)
class Scale(Part):
    """Energy of the logits after SCALE's scaling of the features."""

    head: Head

    @classmethod
    def fit(cls, known: Known, settings: "OneClassSettings") -> "Scale | Absent":
        if known.head is None or known.observation.features_BF is None:
            return Absent()
        return cls(known.head)

    def score(self, seen: Observation) -> Tensor:
        return scaled_energy(seen.features(), self.head, KEPT)

    def arrays(self) -> dict[str, Tensor]:
        return {"head.weight_KF": self.head.weight_KF, "head.bias_K": self.head.bias_K}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Tensor]) -> "Scale":
        return cls(Head(arrays["head.weight_KF"], arrays["head.bias_K"]))

    @staticmethod
    def wanted(weights: Mapping[str, float]) -> bool:
        return bool(weights["scale"])


@dataclass(frozen=True)
class Middle(Part):
    """Mahalanobis distance of the middle activations' direction to the nearest class."""

    classes: ClassGaussian

    @classmethod
    def fit(cls, known: Known, settings: "OneClassSettings") -> "Middle | Absent":
        if known.observation.middle_BM is None:
            return Absent()
        return cls._of_images(known.observation.middle_BM, known.labels_B)

    @classmethod
    def _of_images(cls, middle_BM: Tensor, labels_B: Tensor) -> "Middle":
        return cls(ClassGaussian.fit(_unit(middle_BM), labels_B))

    def score(self, seen: Observation) -> Tensor:
        return self._distance(seen.middle())

    def _distance(self, middle_BM: Tensor) -> Tensor:
        return self.classes.squared_distances(_unit(middle_BM)).amin(1).sqrt()

    def score_as_fresh(self, known: Known) -> Tensor:
        """Measure each image with a Gaussian of the other folds, [B]; where images are too few for that, of all."""
        middle_BM, labels_B = known.observation.middle(), known.labels_B
        folds = FOLDS if len(middle_BM) >= 2 * FOLDS else 1
        order_B = torch.randperm(len(middle_BM), generator=torch.Generator().manual_seed(0))
        fold_B = (order_B % folds).to(labels_B.device)
        distance_B = middle_BM.new_zeros(len(middle_BM))
        for fold in range(folds):
            own_B, others_B = fold_B == fold, (fold_B != fold) | (folds == 1)
            distance_B[own_B] = self._of_images(middle_BM[others_B], labels_B[others_B])._distance(middle_BM[own_B])
        return distance_B

    def arrays(self) -> dict[str, Tensor]:
        return {"middle.mean_KF": self.classes.mean_KF, "middle.whitening_FF": self.classes.whitening_FF}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Tensor]) -> "Middle":
        return cls(ClassGaussian(arrays["middle.mean_KF"], arrays["middle.whitening_FF"]))

    @staticmethod
    def wanted(weights: Mapping[str, float]) -> bool:
        return bool(weights["middle"] or weights["beyond"])


def beyond(middle_B: Tensor) -> Tensor:
    """Make the part `beyond` of `middle` in deviations: how far it lies beyond BEYOND, [B]."""
    return (middle_B - BEYOND).clamp_min(0)


def _unit(values_BM: Tensor) -> Tensor:
    return torch.nn.functional.normalize(values_BM, dim=1)


def _standardised(values_B: Tensor) -> Tensor:
    return (values_B - values_B.mean()) / values_B.std()


def _directions(z_BD: Tensor, confidence_B: Tensor, predicted_B: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Find per predicted class where the log-norms go as confidence falls, [K, D], and the mean projection, [K].

    Both are drawn towards those of all images, the more the fewer a class has; the projection has unit deviation within
    the class.
    """
    pooled_D = -(z_BD.T @ confidence_B) / len(z_BD)
    pooled_variance = (z_BD @ pooled_D).var()
    directions_KD, offsets_K = z_BD.new_zeros(classes, z_BD.shape[1]), z_BD.new_zeros(classes)
    for k in range(classes):
        own_BD, own_B = z_BD[predicted_B == k], confidence_B[predicted_B == k]
        n = len(own_BD)
        trust = n / (n + PRIOR)
        direction_D, mean_D, variance = pooled_D, torch.zeros_like(pooled_D), pooled_variance
        if n > 1:
            own_D = -((own_BD - own_BD.mean(0)).T @ (own_B - own_B.mean())) / n
            direction_D = trust * own_D + (1 - trust) * pooled_D
            mean_D = trust * own_BD.mean(0)
            variance = trust * (own_BD @ direction_D).var() + (1 - trust) * pooled_variance
        direction_D = direction_D / variance.sqrt().clamp_min(torch.finfo(z_BD.dtype).tiny)
        directions_KD[k], offsets_K[k] = direction_D, mean_D @ direction_D
    return directions_KD, offsets_K
