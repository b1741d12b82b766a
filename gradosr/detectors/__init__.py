"""Unknown detectors: from the observation of a batch to an unknown score per image. Imports torch alone.

A detector is a class in a file of this package, and a line in a table of gradosr.config.detectors, which gives its kind
and says where the class is. Its state is its arrays: a bundle stores `arrays()`, and `from_arrays` brings back the same
scores.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Protocol

from torch import Tensor

from gradosr.detectors.observation import ClassSplit, Known, Observation
from gradosr.detectors.one_class import OneClassDetector
from gradosr.detectors.transfer import TransferDetector


class Detector(Protocol):
    """Scores observations; higher = more unknown."""

    def score(self, observation: Observation) -> Tensor:
        """Return unknown scores [B], float32, finite for finite observations."""
        ...

    def contributions(self, observation: Observation) -> dict[str, Tensor]:
        """Return what each part of the score adds to it, each [B], by the part's name; their sum is the score."""
        ...

    def arrays(self) -> dict[str, Tensor]:
        """Return everything that a bundle stores, by name."""
        ...

    def dropped(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Pick from the coordinates' names those that carried nothing on held-out images."""
        ...

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Tensor]) -> "Detector":
        """Make the detector that has these arrays. Raises KeyError for one that is missing."""
        ...


class FittedToKnown(Detector, Protocol):
    """A detector that a fit job can ask for."""

    @classmethod
    def fit(cls, known: Known, settings: Any) -> "FittedToKnown":
        """Fit to images of known classes; `settings` are the detector's own, of gradosr.config.

        Raises ClassifierError where the classifier cannot give what the detector needs.
        """
        ...


def detector_class(kind: str) -> type[FittedToKnown]:
    """Import the class of a kind that a fit job can ask for. Raises KeyError for a kind that no table lists."""
    from gradosr.config import DETECTORS  # needs pydantic, which detectors do not

    found: type[FittedToKnown] = _imported(DETECTORS[kind].place)
    return found


def restore(kind: str, arrays: Mapping[str, Tensor]) -> Detector:
    """Make the detector of a bundle. Raises KeyError for a kind or an array that is not there."""
    from gradosr.config import PLACES

    found: type[Detector] = _imported(PLACES[kind])
    return found.from_arrays(arrays)


def _imported(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(f"{__name__}.{module}"), name)


__all__ = [
    "ClassSplit",
    "Detector",
    "FittedToKnown",
    "Known",
    "Observation",
    "OneClassDetector",
    "TransferDetector",
    "detector_class",
    "restore",
]
