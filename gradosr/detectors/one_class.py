"""The default detector: fitted on known images alone, so that it serves a classifier trained elsewhere.

A weighted sum of parts, each in deviations of the known images, higher = more unknown:

max_logit   the max logit, negated (Hendrycks et al., ICML 2022)
gradients   per objective, the log-norms projected on the direction in which images of the predicted class lose
            confidence. Chosen against Mahalanobis distance, which spends itself on low-variance directions
scale       energy of the logits after each image's features are scaled by how much of their sum the largest tenth
            holds (SCALE, Xu et al., ICLR 2024)
middle      Mahalanobis distance of the middle activations' direction to the nearest class: images far from everything
            known (noise, drawings, another modality) pass the last layer as a sure known, but not the middle
beyond      how far `middle` lies beyond BEYOND deviations, where few known images lie: an image that strange is unknown
            whatever the last layer says, and the images that the last layer must tell apart keep their order

The weights were set on CIFAR-10 networks; docs/results.md has the ablation. B images, K classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gradosr.detectors.observation import Known, Observation
from gradosr.detectors.one_class_parts import Absent, Gradients, MaxLogit, Middle, Part, Scale, beyond
from gradosr.errors import ClassifierError

if TYPE_CHECKING:
    from gradosr.config import OneClassSettings

CONSTANT = 1e-6
"""Relative range of the highest logits below which they differ by rounding alone, in float32."""
PARTS: dict[str, type[Part]] = {"max_logit": MaxLogit, "gradients": Gradients, "scale": Scale, "middle": Middle}
"""Measured parts by the name of their weight, in the order of a bundle's arrays mean_4 and std_4."""
WEIGHTED = (*PARTS, "beyond")
"""Names of all parts, in the order of a bundle's array weight_5."""


@dataclass(frozen=True)
class Scaling:
    """Mean and deviation of one part on known images."""

    mean: Tensor
    std: Tensor

    def __call__(self, values_B: Tensor) -> Tensor:
        return (values_B - self.mean) / self.std


@dataclass(frozen=True)
class OneClassDetector:
    """Weighted sum of the parts."""

    parts: Mapping[str, Part]
    """The measured parts, in the order of PARTS."""
    scalings: Mapping[str, Scaling]
    """Scaling of each measured part."""
    weights: Tensor
    """Weights in the order of WEIGHTED; 0 for a part that is left out."""

    @classmethod
    def fit(cls, known: Known, settings: "OneClassSettings") -> "OneClassDetector":
        """Fit every part, then measure how each spreads over the known images.

        A part that the classifier cannot give (no linear layer makes its logits, no layer has a rule) is left out.
        Raises ClassifierError when the classifier is equally confident of all images.
        """
        _check_confidence(known.observation.logits_BK)
        weights: dict[str, float] = settings.weights.model_dump()
        parts = {name: part.fit(known, settings) if part.wanted(weights) else Absent() for name, part in PARTS.items()}
        parts_B4 = torch.column_stack([part.score_as_fresh(known) for part in parts.values()])
        mean_4, std_4 = parts_B4.mean(0), parts_B4.std(0).clamp_min(torch.finfo(torch.float32).tiny)
        absent = {name for name, part in {**parts, "beyond": parts["middle"]}.items() if isinstance(part, Absent)}
        given = [0.0 if name in absent else weights[name] for name in WEIGHTED]
        return cls(parts, _scalings(mean_4, std_4), torch.tensor(given, device=parts_B4.device))

    def score(self, observation: Observation) -> Tensor:
        """Return unknown scores [B], in deviations of the known images."""
        deviations = self._deviations(observation)
        return torch.column_stack([deviations[name] for name in WEIGHTED]) @ self.weights

    def contributions(self, observation: Observation) -> dict[str, Tensor]:
        """Return the weighted deviation of each part that has a weight, each [B]."""
        deviations = self._deviations(observation)
        return {name: weight * deviations[name] for name, weight in zip(WEIGHTED, self.weights, strict=True) if weight}

    def _deviations(self, observation: Observation) -> dict[str, Tensor]:
        deviations = {name: self.scalings[name](part.score(observation)) for name, part in self.parts.items()}
        return deviations | {"beyond": beyond(deviations["middle"])}

    def arrays(self) -> dict[str, Tensor]:
        found = {name: values for part in self.parts.values() for name, values in part.arrays().items()}
        found["mean_4"] = torch.stack([self.scalings[name].mean for name in PARTS])
        found["std_4"] = torch.stack([self.scalings[name].std for name in PARTS])
        found["weight_5"] = self.weights
        return found

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Tensor]) -> "OneClassDetector":
        weights = dict(zip(WEIGHTED, arrays["weight_5"].tolist(), strict=True))
        parts = {name: part.from_arrays(arrays) if part.wanted(weights) else Absent() for name, part in PARTS.items()}
        return cls(parts, _scalings(arrays["mean_4"], arrays["std_4"]), arrays["weight_5"])

    def dropped(self, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name for part in self.parts.values() for name in part.dropped(names))


def _check_confidence(logits_BK: Tensor) -> None:
    max_logit_B = logits_BK.amax(1)
    if not max_logit_B.amax() - max_logit_B.amin() > CONSTANT * max_logit_B.abs().amax():
        raise ClassifierError(
            f"the highest logit is {max_logit_B[0]:.4g} for each of {len(max_logit_B)} known images: they lose "
            "confidence in no direction; check the classifier's weights and the images"
        )


def _scalings(mean_4: Tensor, std_4: Tensor) -> dict[str, Scaling]:
    return {name: Scaling(mean, std) for name, mean, std in zip(PARTS, mean_4, std_4, strict=True)}
