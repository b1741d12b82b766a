"""A detector that has learned from labelled images: the score of an older one, corrected by all that is seen.

With z the older detector's score in deviations of known images, and x all signals, standardised,

    score = score of the older detector + deviation * (w . x + STEEPER * max(0, z - CLEAR))

Near the known images, where the older detector is unsure, the labels decide through w. Images far from everything
known (noise, drawings) cannot be among the labels in all their kinds: x is drawn in to the length that it has for known
images, so that no image is corrected by much, and beyond CLEAR the older score counts STEEPER times more.

The paper trains its detector on gradient representations of pseudo-unknown classes (Lee & AlRegib, ICIP 2021,
section 3); here real unknown images take their place. B images, V values of all signals, D of them that vary.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from gradosr.detectors import Detector, restore
from gradosr.detectors.observation import Observation
from gradosr.representations import Standardiser

CLEAR = 2.0
"""Deviations of the older score that 2 to 3 % of the known images pass."""
STEEPER = 3.0
"""Slope that the older score gains beyond CLEAR, set on strokes, clouds and shapes (lab/evaluation/far.py)."""
OWN, BASE = "learned.", "base."
"""Beginnings of the names of arrays: this detector's own, and the older one's, which its kind follows."""


@dataclass(frozen=True)
class View:
    """The older score z and the signals x as the correction sees them."""

    mean: Tensor
    """Mean of the older score on known images."""
    std: Tensor
    """Deviation of the older score on known images."""
    standardiser: Standardiser
    """Standardiser of the signals."""
    length: Tensor
    """Length to which longer x are drawn in: the median of the known images."""

    @classmethod
    def fit(cls, known: Observation, scores_B: Tensor) -> "View":
        """Fit to known images and their older scores."""
        signals_BV = _together(known)
        standardiser = Standardiser.fit(signals_BV)
        std = scores_B.std().clamp_min(torch.finfo(scores_B.dtype).tiny)
        return cls(scores_B.mean(), std, standardiser, standardiser(signals_BV).norm(dim=1).median())

    def signals(self, seen: Observation) -> Tensor:
        """Return x, [B, D]."""
        x_BD = self.standardiser(_together(seen))
        drawn_in_B1: Tensor = (self.length / x_BD.norm(dim=1, keepdim=True)).clamp_max(1)
        return x_BD * drawn_in_B1

    def deviations(self, scores_B: Tensor) -> Tensor:
        """Return z, [B]."""
        return (scores_B - self.mean) / self.std


@dataclass(frozen=True)
class LearnedDetector:
    """An older detector and its correction; higher = more unknown, in the older detector's unit."""

    base: Detector
    kind: str
    """Kind of the older detector."""
    view: View
    weights_D: Tensor
    """Weights w; all 0 leave the order of the older scores as it is, and so their p-values."""

    def score(self, observation: Observation) -> Tensor:
        """Return unknown scores [B]."""
        scores_B = self.base.score(observation)
        return scores_B + self._correction(observation, scores_B)

    def contributions(self, observation: Observation) -> dict[str, Tensor]:
        """Return what the older detector's parts add to the score, and the correction as `labels`, each [B]."""
        scores_B = self.base.score(observation)
        return self.base.contributions(observation) | {"labels": self._correction(observation, scores_B)}

    def _correction(self, observation: Observation, scores_B: Tensor) -> Tensor:
        beyond_B = STEEPER * (self.view.deviations(scores_B) - CLEAR).clamp_min(0)
        return self.view.std * (self.view.signals(observation) @ self.weights_D + beyond_B)

    def arrays(self) -> dict[str, Tensor]:
        """Return everything that a bundle stores, by name."""
        view = self.view
        own = {"mean": view.mean, "std": view.std, "length": view.length, "weights_D": self.weights_D}
        own |= {f"signals.{name}": values for name, values in asdict(view.standardiser).items()}
        older = {f"{BASE}{self.kind}.{name}": values for name, values in self.base.arrays().items()}
        return older | {OWN + name: values for name, values in own.items()}

    def dropped(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Pick from the coordinates' names those that carried nothing in the older detector."""
        return self.base.dropped(names)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Tensor]) -> "LearnedDetector":
        """Make the detector that has these arrays. Raises KeyError for one that is missing."""
        own = {name.removeprefix(OWN): values for name, values in arrays.items() if name.startswith(OWN)}
        older = {name.removeprefix(BASE): values for name, values in arrays.items() if name.startswith(BASE)}
        kind = next(iter(older), "").partition(".")[0]
        base = restore(kind, {name.removeprefix(f"{kind}."): values for name, values in older.items()})
        standardiser = Standardiser(*(own[f"signals.{name}"] for name in ("kept_D", "mean_D", "std_D")))
        return cls(base, kind, View(own["mean"], own["std"], standardiser, own["length"]), own["weights_D"])


def _together(seen: Observation) -> Tensor:
    """Return the values of all signals side by side, [B, V]; the logits in ascending order, whatever their classes."""
    return torch.cat(
        [values_BN.sort(1).values if name == "logits" else values_BN for name, values_BN in seen.signals().items()], 1
    )
