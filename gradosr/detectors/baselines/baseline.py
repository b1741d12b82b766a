"""What all baselines share."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields

from torch import Tensor

from gradosr.detectors.observation import Known, Observation


@dataclass(frozen=True)
class Baseline(ABC):
    """A detector that is fitted by nothing but known images. Its fields are tensors, and all that a bundle stores."""

    @classmethod
    def fit(cls, known: Known) -> "Baseline":
        """Raises ClassifierError where the classifier cannot give what it needs.

        A baseline without fields learns nothing: scoring once is for the error alone.
        """
        baseline = cls()
        baseline.score(known.observation)
        return baseline

    @abstractmethod
    def score(self, observation: Observation) -> Tensor:
        """Unknown score [B], float32, finite for finite observations; higher = more unknown."""

    def arrays(self) -> dict[str, Tensor]:
        """By name, for the bundle."""
        return dict(vars(self))

    def dropped(self, _names: tuple[str, ...]) -> tuple[str, ...]:
        """None: no coordinate is standardised."""
        return ()

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Tensor]) -> "Baseline":
        """Inverse of `arrays`. Raises KeyError for one that is not there."""
        return cls(**{one.name: arrays[one.name] for one in fields(cls)})
