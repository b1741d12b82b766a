"""Published detectors on the same observation: to measure others against, or to use where one is the best.

All are fitted on the known images that the others are fitted on. Sources stand beside each class.
"""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from gradosr.detectors.baselines.logits import MaxLogit
from gradosr.detectors.observation import Known, Observation


class Baseline(Protocol):
    """A detector that is fitted by nothing but known images."""

    @classmethod
    def fit(cls, known: Known) -> "Baseline":
        """Raises ClassifierError where the classifier cannot give what it needs."""
        ...

    def score(self, observation: Observation) -> Tensor:
        """Unknown score [B], float32; higher = more unknown."""
        ...

    def arrays(self) -> dict[str, Tensor]:
        """By name, for the bundle."""
        ...

    def dropped(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """None: no coordinate is standardised."""
        ...

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Tensor]) -> "Baseline":
        """Inverse of `arrays`. Raises KeyError for one that is not there."""
        ...


BASELINES: dict[str, type[Baseline]] = {
    "max_logit": MaxLogit,
}
