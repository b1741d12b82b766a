"""The base class of all baselines."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields

from torch import Tensor

from gradosr.detectors.observation import Known, Observation


@dataclass(frozen=True)
class Baseline(ABC):
    """A detector that is fitted on known images and has nothing to set.

    Its fields are tensors, and all that a bundle stores.
    """

    @classmethod
    def fit(cls, known: Known, settings: object = None) -> "Baseline":
        """Learn nothing; to be overridden by a baseline that has fields.

        Scores once, to raise ClassifierError where the classifier cannot give what the baseline needs.
        """
        baseline = cls()
        baseline.score(known.observation)
        return baseline

    @abstractmethod
    def score(self, observation: Observation) -> Tensor:
        """Return unknown scores [B], float32, finite for finite observations; higher = more unknown."""

    def contributions(self, observation: Observation) -> dict[str, Tensor]:
        """Return the score as its only part."""
        return {"score": self.score(observation)}

    def arrays(self) -> dict[str, Tensor]:
        return dict(vars(self))

    def dropped(self, _names: tuple[str, ...]) -> tuple[str, ...]:
        """Return nothing: no coordinate is standardised."""
        return ()

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Tensor]) -> "Baseline":
        """Make the baseline that has these arrays. Raises KeyError for one that is missing."""
        return cls(**{one.name: arrays[one.name] for one in fields(cls)})
