"""A baseline that scales the features. F features, K classes."""

from dataclasses import dataclass

from torch import Tensor

from gradosr.detectors.baselines.baseline import Baseline
from gradosr.detectors.observation import Known, Observation
from gradosr.detectors.scaling import scaled_energy
from gradosr.gradients import Head

KEPT = 0.15
"""Share of the features that is kept: the authors' percentile 85 (SCALE's ImageNet setting)."""


@dataclass(frozen=True)
class Scale(Baseline):
    """SCALE (Xu et al., "Scaling for Training Time and Post-hoc OOD Detection Enhancement", ICLR 2024)."""

    weight_KF: Tensor
    bias_K: Tensor

    @classmethod
    def fit(cls, known: Known, settings: object = None) -> "Scale":
        """Keep the layer that makes the logits. Raises ClassifierError where there is none."""
        head = known.last_layer()
        return cls(head.weight_KF, head.bias_K)

    def score(self, observation: Observation) -> Tensor:
        return scaled_energy(observation.features(), Head(self.weight_KF, self.bias_K), KEPT)
