"""Unknown detectors: from what one pass through the classifier yields to an unknown score. Imports torch alone.

One variant per file, one line each in DETECTORS. A detector is its arrays: `arrays()` is what a
bundle stores and `from_arrays` brings back the same scores.
"""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from gradosr.detectors.baselines import BASELINES
from gradosr.detectors.observation import Known, Observation
from gradosr.detectors.one_class import OneClassDetector
from gradosr.detectors.transfer import TransferDetector


class Detector(Protocol):
    """Scores observations; higher = more unknown."""

    def score(self, observation: Observation) -> Tensor:
        """Unknown score [B], float32, finite for finite observations."""
        ...

    def arrays(self) -> dict[str, Tensor]:
        """By name, for the bundle."""
        ...

    def dropped(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Coordinates that carried nothing on held-out images, by name."""
        ...

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Tensor]) -> "Detector":
        """Inverse of `arrays`. Raises KeyError for one that is not there."""
        ...


def restore(kind: str, arrays: Mapping[str, Tensor]) -> Detector:
    """The detector of a bundle. Raises KeyError for a kind or an array that is not there."""
    return DETECTORS[kind].from_arrays(arrays)


DETECTORS: dict[str, type[Detector]] = {"one_class": OneClassDetector, "transfer": TransferDetector, **BASELINES}

__all__ = [
    "BASELINES",
    "DETECTORS",
    "Detector",
    "Known",
    "Observation",
    "OneClassDetector",
    "TransferDetector",
    "restore",
]
