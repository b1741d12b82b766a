"""The default detector: fitted on known images alone, so that it serves a classifier trained elsewhere.

A sum of parts, each in deviations of the known images, higher = more unknown:

max_logit   the max logit, negated (Hendrycks et al., ICML 2022)
gradients   per objective, the log-norms projected on the direction in which images of the predicted class lose
            confidence. Chosen against Mahalanobis distance, which spends itself on low-variance directions
scale       energy of the logits after each image's features are scaled by how much of their sum the largest tenth
            holds (SCALE, Xu et al., ICLR 2024)
middle      Mahalanobis distance of the middle activations' direction to the nearest class: what is far from
            everything known (noise, drawings, another modality) passes the last layer as a sure known, not the middle
beyond      how far `middle` lies beyond BEYOND deviations, where known images hardly are: what is that strange there
            is unknown whatever the last layer says, and images that the last layer must tell apart keep their order

The weights were set on CIFAR-10 networks; README, "Detectors", has the ablation. B images, K classes, D coordinates
kept, F features, M middle channels, n images of a class.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from gradosr.detectors.gaussian import ClassGaussian
from gradosr.detectors.observation import Known, Observation
from gradosr.detectors.scaling import scaled_energy
from gradosr.errors import ClassifierError
from gradosr.gradients import Head
from gradosr.representations import Standardiser

CONSTANT = 1e-6
"""Relative range of the highest logits below which they differ by rounding alone, in float32."""
PRIOR = 10
"""Images that the pooled estimate counts for beside the n of a class."""
KEPT = 0.1
"""Share of the features that SCALE keeps."""
BEYOND = 2.5
"""Deviations of `middle` that 2 to 3 % of the known images pass."""
FOLDS = 10
"""In turn left out of the middle's Gaussian: of the images it is fitted on, the distances are too small."""
PARTS = ("max_logit", "gradients", "scale", "middle", "beyond")


@dataclass(frozen=True)
class OneClassDetector:
    """Weighted sum of the parts that its arrays hold."""

    standardiser: Standardiser
    """Of the log-norms."""
    direction_KD: Tensor
    """By predicted class; objectives and their weight in one linear function."""
    offset_K: Tensor
    head: Head | None
    middle: ClassGaussian | None
    mean_4: Tensor
    std_4: Tensor
    weight_5: Tensor
    """Of the PARTS; 0 leaves one out. `beyond` is made of `middle`, whose mean and deviation it has."""

    @classmethod
    def fit(cls, known: Known, weights: Mapping[str, float], objectives: int = 1) -> "OneClassDetector":
        """`weights` by name of PARTS; `objectives` share the coordinates evenly, in order.

        A part that the classifier cannot give (no linear layer makes its logits, no layer has a rule) is left out.
        Raises ClassifierError when the classifier is equally confident of all images.
        """
        seen = known.observation
        max_logit_B, predicted_B = seen.logits_BK.max(1)
        if not max_logit_B.amax() - max_logit_B.amin() > CONSTANT * max_logit_B.abs().amax():
            raise ClassifierError(
                f"the highest logit is {max_logit_B[0]:.4g} for each of {len(seen)} known images: they lose "
                "confidence in no direction; check the classifier's weights and the images"
            )
        standardiser = Standardiser.fit(seen.log_norms_BC)
        of_objective_D = standardiser.kept_D * objectives // max(1, seen.log_norms_BC.shape[1])
        z_BD, confidence_B = standardiser(seen.log_norms_BC), _standardised(max_logit_B)
        fits = [
            _directions(z_BD * (of_objective_D == one), confidence_B, predicted_B, seen.logits_BK.shape[1])
            for one in range(objectives)
        ]
        middle, distance_B = None, torch.zeros_like(max_logit_B)
        if (weights["middle"] or weights["beyond"]) and seen.middle_BM is not None:
            middle = ClassGaussian.fit(_unit(seen.middle_BM), known.labels_B)
            distance_B = _distances_to_others(seen.middle_BM, known.labels_B)
        head = known.head if weights["scale"] and seen.features_BF is not None else None
        weight_5 = torch.tensor([weights[part] for part in PARTS], device=z_BD.device)
        given = [True, True, head is not None, middle is not None, middle is not None]
        given_5 = torch.tensor(given, device=z_BD.device)
        directions, offsets = (torch.stack(one).sum(0) for one in zip(*fits, strict=True))
        zero_4, one_4 = z_BD.new_zeros(4), z_BD.new_ones(4)
        raw = cls(standardiser, directions, offsets, head, middle, zero_4, one_4, weight_5 * given_5)
        parts_B4 = torch.column_stack([raw._parts(seen)[:, :3], distance_B])
        return replace(raw, mean_4=parts_B4.mean(0), std_4=parts_B4.std(0).clamp_min(torch.finfo(torch.float32).tiny))

    def _parts(self, seen: Observation) -> Tensor:
        max_logit_B, predicted_B = seen.logits_BK.max(1)
        z_BD = self.standardiser(seen.log_norms_BC)
        gradients_B = torch.linalg.vecdot(z_BD, self.direction_KD[predicted_B]) - self.offset_K[predicted_B]
        scale_B = middle_B = torch.zeros_like(max_logit_B)
        if self.head is not None:
            scale_B = scaled_energy(seen.features(), self.head, KEPT)
        if self.middle is not None:
            middle_B = _distance(self.middle, seen.middle())
        return torch.stack([-max_logit_B, gradients_B, scale_B, middle_B], 1)

    def score(self, observation: Observation) -> Tensor:
        """Unknown score [B], in deviations of the known's max logit; higher = more unknown."""
        z_B4 = (self._parts(observation) - self.mean_4) / self.std_4
        beyond_B = (z_B4[:, 3] - BEYOND).clamp_min(0)
        return torch.column_stack([z_B4, beyond_B]) @ self.weight_5

    def arrays(self) -> dict[str, Tensor]:
        """By name, for the bundle."""
        parts = {"head": self.head, "middle": self.middle}
        own = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        of_parts = {f"{name}.{key}": value for name, part in parts.items() if part for key, value in vars(part).items()}
        return own | asdict(self.standardiser) | of_parts

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Tensor]) -> "OneClassDetector":
        """Inverse of `arrays`."""
        weights = dict(zip(PARTS, arrays["weight_5"].tolist(), strict=True))
        head = Head(arrays["head.weight_KF"], arrays["head.bias_K"]) if weights["scale"] else None
        middle = None
        if weights["middle"] or weights["beyond"]:
            middle = ClassGaussian(arrays["middle.mean_KF"], arrays["middle.whitening_FF"])
        rest = {name: arrays[name] for name in ("direction_KD", "offset_K", "mean_4", "std_4", "weight_5")}
        return cls(Standardiser.from_arrays(arrays), head=head, middle=middle, **rest)

    def dropped(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Coordinates that carried nothing, by name."""
        return self.standardiser.dropped(names)


def _unit(values_BM: Tensor) -> Tensor:
    return torch.nn.functional.normalize(values_BM, dim=1)


def _distance(classes: ClassGaussian, middle_BM: Tensor) -> Tensor:
    return classes.squared_distances(_unit(middle_BM)).amin(1).sqrt()


def _distances_to_others(middle_BM: Tensor, labels_B: Tensor) -> Tensor:
    """Of each image to the nearest class, fitted on images of other folds [B]; too few for that: on all."""
    folds = FOLDS if len(middle_BM) >= 2 * FOLDS else 1
    fold_B = (torch.randperm(len(middle_BM), generator=torch.Generator().manual_seed(0)) % folds).to(labels_B.device)
    distance_B = middle_BM.new_zeros(len(middle_BM))
    for fold in range(folds):
        own_B, others_B = fold_B == fold, (fold_B != fold) | (folds == 1)
        others = ClassGaussian.fit(_unit(middle_BM[others_B]), labels_B[others_B])
        distance_B[own_B] = _distance(others, middle_BM[own_B])
    return distance_B


def _standardised(values_B: Tensor) -> Tensor:
    return (values_B - values_B.mean()) / values_B.std()


def _directions(z_BD: Tensor, confidence_B: Tensor, predicted_B: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """By predicted class: where the standardised log-norms go as confidence falls, and the projection's own mean.

    Both drawn towards those of all images, the more the fewer a class has; of unit deviation within the class.
    """
    of_all_D = -(z_BD.T @ confidence_B) / len(z_BD)
    variance_of_all = (z_BD @ of_all_D).var()
    directions_KD, offsets_K = z_BD.new_zeros(classes, z_BD.shape[1]), z_BD.new_zeros(classes)
    for k in range(classes):
        own_BD, own_B = z_BD[predicted_B == k], confidence_B[predicted_B == k]
        n = len(own_BD)
        trust = n / (n + PRIOR)
        direction_D, mean_D = of_all_D, torch.zeros_like(of_all_D)
        variance = variance_of_all
        if n > 1:
            own_D = -((own_BD - own_BD.mean(0)).T @ (own_B - own_B.mean())) / n
            direction_D = trust * own_D + (1 - trust) * of_all_D
            mean_D = trust * own_BD.mean(0)
            variance = trust * (own_BD @ direction_D).var() + (1 - trust) * variance_of_all
        direction_D = direction_D / variance.sqrt().clamp_min(torch.finfo(z_BD.dtype).tiny)
        directions_KD[k], offsets_K[k] = direction_D, mean_D @ direction_D
    return directions_KD, offsets_K
