"""Baselines that see the logits alone. B images, K classes."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from gradosr.detectors.observation import Known, Observation


@dataclass(frozen=True)
class MaxLogit:
    """Maximum logit (Hendrycks et al., "Scaling OOD Detection for Real-World Settings", ICML 2022), negated."""

    @classmethod
    def fit(cls, _known: Known) -> "MaxLogit":
        """Nothing to fit."""
        return cls()

    def score(self, observation: Observation) -> Tensor:
        """[B]."""
        return -observation.logits_BK.amax(1)

    def arrays(self) -> dict[str, Tensor]:
        """None."""
        return {}

    def dropped(self, _names: tuple[str, ...]) -> tuple[str, ...]:
        """None."""
        return ()

    @classmethod
    def from_arrays(cls, _arrays: Mapping[str, Tensor]) -> "MaxLogit":
        """Nothing to read."""
        return cls()
