"""The parts of an image's unknown score beside those of the held-out known images, and its heat map.

B images, n held-out known images, C coordinates of the log-norms.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradosr.bundle.bundle import load_bundle, read_held_out
from gradosr.bundle.manifest import HELD_OUT, read_manifest
from gradosr.config import ComputeSettings, Precision
from gradosr.detectors import Detector, Observation
from gradosr.errors import BundleError
from gradosr.explanation.heat import Heat, heat_maps
from gradosr.scoring.scorer import Scorer
from gradosr.store import Store

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Measured:
    """A quantity of one image."""

    name: str
    value: float
    known_below: float | None
    """Share of the held-out known images with a lower value, 0 to 1; None without held-out images."""


@dataclass(frozen=True)
class Explanation:
    """The reasons for the unknown score of one image."""

    unknown_score: float
    p_value: float
    is_unknown: bool
    predicted_class: str
    confidence: float
    parts: tuple[Measured, ...]
    """Contributions of the detector's parts, in its order; their sum is the score."""
    layers: tuple[Measured, ...]
    """Log-norms of the gradients that the detector sees, OBJECTIVE/PARAMETER; empty for a detector that sees none."""
    heat: Heat | None
    """Map of where in the image the score comes from; None if the middle layer's input has no positions."""

    def facts(self) -> dict[str, Any]:
        """Return the explanation as plain data, without the heat map's values."""
        facts: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("unknown_score", "p_value", "is_unknown", "predicted_class", "confidence")
        }
        for name in ("parts", "layers"):
            facts[name] = [vars(one) for one in getattr(self, name)]
        return facts | {"heat_map": self.heat.facts() if self.heat else None}


class Explainer:
    """A bundle that explains its scores."""

    def __init__(self, scorer: Scorer, known: Observation | None) -> None:
        """Prepare a bundle; `known` is what was seen of its held-out calibration images, in the scorer's precision."""
        self.bundle, self._scorer = scorer.bundle, scorer
        self._detector: Detector = scorer.detector
        self._known_parts: Mapping[str, Floats] = {}
        self._known_norms_nC: Floats | None = None
        if known is not None:
            found = {name: values.numpy() for name, values in self.bundle.detector.contributions(known).items()}
            self._known_parts = {name: np.sort(values) for name, values in found.items()}
            self._known_norms_nC = np.sort(known.log_norms_BC.numpy(), 0)

    @classmethod
    def load(cls, store: Store, uri: str, trust: tuple[str, ...], device: ComputeSettings) -> "Explainer":
        """Load the bundle at a URI; one without the signals of its held-out images explains without comparing.

        Raises BundleError, ClassifierError or ConfigError, each in one line.
        """
        bundle = load_bundle(store, uri, trust)
        return cls(Scorer(bundle, device), read_known(store, uri, bundle.digest, device.precision))

    def __call__(self, images_BCHW: Tensor) -> list[Explanation | None]:
        """Explain uint8 images [B, 3, H, W] at the classifier's input size; None for one whose score is not finite."""
        scores, observer = self._scorer.score(images_BCHW), self._scorer.observer
        seen = observer(images_BCHW).observation
        with torch.no_grad():
            parts = {name: values.cpu().numpy() for name, values in self._detector.contributions(seen).items()}
        norms_BC, maps = seen.log_norms_BC.cpu().numpy(), heat_maps(observer, self._detector, images_BCHW, seen)
        classes = self.bundle.manifest.classes
        return [
            Explanation(
                unknown_score=float(scores.unknown_score[i]),
                p_value=float(scores.p_value[i]),
                is_unknown=bool(scores.is_unknown[i]),
                predicted_class=classes[scores.predicted_index[i]],
                confidence=float(scores.confidence[i]),
                parts=tuple(self._part(name, values[i]) for name, values in parts.items()),
                layers=tuple(self._layer(place, value) for place, value in enumerate(norms_BC[i])),
                heat=maps[i],
            )
            if scores.finite[i]
            else None
            for i in range(len(images_BCHW))
        ]

    def _part(self, name: str, value: float) -> Measured:
        return Measured(name, float(value), _below(self._known_parts.get(name), value))

    def _layer(self, place: int, value: float) -> Measured:
        known_nC = self._known_norms_nC
        known = None if known_nC is None or place >= known_nC.shape[1] else known_nC[:, place]
        return Measured(self._scorer.observer.coordinates[place], float(value), _below(known, value))


def read_known(store: Store, uri: str, digest: str, precision: Precision) -> Observation | None:
    """Read what was seen of a bundle's held-out calibration images; None if it was made before bundles kept that.

    Raises BundleError if it is damaged, or if the bundle at the URI is not the one of this digest.
    """
    manifest, found = read_manifest(store, uri)
    if found != digest:
        raise BundleError(f"{uri}: replaced since it was loaded; load it again")
    return read_held_out(store, uri).calibration[precision] if HELD_OUT in manifest.files else None


def _below(known_n: Floats | None, value: float) -> float | None:
    """Return the share of sorted values that are lower; half of those that are equal count."""
    if known_n is None or not len(known_n):
        return None
    left, right = (int(np.searchsorted(known_n, np.float32(value), side=side)) for side in ("left", "right"))
    return (left + right) / 2 / len(known_n)
