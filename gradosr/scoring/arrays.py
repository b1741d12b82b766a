"""Published detectors over arrays, for people who have features or logits already; no image and no classifier.

B images, F features, K classes.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from gradosr.bundle.calibration import Calibration
from gradosr.config import BASELINES
from gradosr.detectors import Known, Observation, detector_class
from gradosr.errors import ConfigError, InputError
from gradosr.gradients import Head

KINDS = tuple(kind for kind, line in BASELINES.items() if not line.signals.objectives and kind != "gradnorm")
"""Kinds that need no gradients: of logits msp, max_logit, energy, gen and openmax, the others of features."""
OF_FEATURES = ("scale", "knn", "vim", "mahalanobis", "rmd")
OF_CLASSES = ("openmax", "mahalanobis", "rmd")


@dataclass
class Detector:
    """An unknown detector in the manner of scikit-learn, with p-values.

        detector = gradosr.Detector("mahalanobis").fit(features_BF, labels_B)
        detector.score(others_BF)        # higher = more unknown
        detector.predict(others_BF)      # True = unknown

    Images of known classes are split in two: one part fits, the other calibrates the p-values (split-conformal).
    """

    kind: str = "knn"
    """Name of the detector, one of KINDS."""
    false_alarm_rate: float = 0.05
    """Share of known images that may be called unknown."""
    calibration: float = 0.5
    """Share of the images given to `fit` that calibrates."""
    seed: int = 0
    """Seed of the split."""
    per_class: bool = False
    """Whether an image is compared with the calibration images of its own predicted class alone, that of its largest
    logit; logits are needed then. See `calibration` of a fit job."""
    _fitted: Any = field(default=None, init=False, repr=False)
    _calibration: Any = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        """Raise ConfigError for a kind that is not there."""
        if self.kind not in KINDS:
            raise ConfigError(f"{self.kind!r}: not a detector over arrays (valid: {', '.join(KINDS)})")

    def fit(
        self,
        features: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        *,
        logits: ArrayLike | None = None,
        weight: ArrayLike | None = None,
        bias: ArrayLike | None = None,
    ) -> "Detector":
        """Fit to known images that the classifier was not trained on, and return the detector.

        Features are [B, F], logits [B, K], labels the index of each image's class (default: that of its largest logit).
        `weight` [K, F] and `bias` [K] are of the layer that makes the logits, for vim and scale. Raises ConfigError for
        what a kind needs and was not given, InputError for too few images.
        """
        seen = self._observation(features, logits)
        if labels is None and logits is None and self.kind in OF_CLASSES:
            raise ConfigError(f"{self.kind}: needs labels, or logits whose largest stand for them")
        labels_B = seen.logits_BK.argmax(1) if labels is None else torch.as_tensor(np.array(labels)).long()
        if len(labels_B) != len(seen):
            raise ConfigError(f"{len(labels_B)} labels of {len(seen)} images")
        if self.kind in ("vim", "scale") and weight is None:
            raise ConfigError(f"{self.kind}: needs weight (and bias) of the layer that makes the logits")
        head = None
        if weight is not None:
            weight_KF = _matrix(weight)
            head = Head(
                weight_KF, weight_KF.new_zeros(len(weight_KF)) if bias is None else torch.as_tensor(bias).float()
            )
        order_B = torch.randperm(len(seen), generator=torch.Generator().manual_seed(self.seed))
        calibrating, fitting = order_B.tensor_split([round(self.calibration * len(seen))])
        if not len(fitting):
            raise InputError(f"{len(seen)} images: none are left to fit to")
        self._fitted = detector_class(self.kind).fit(Known(seen[fitting], labels_B[fitting], head), None)
        known = seen[calibrating]
        classes = [f"class {k}" for k in range(known.logits_BK.shape[1])]
        self._calibration = Calibration.of(
            self._fitted.score(known).numpy(), self.false_alarm_rate, self._predicted(known), classes
        )
        return self

    def score(self, features: ArrayLike | None = None, logits: ArrayLike | None = None) -> NDArray[np.float32]:
        """Return unknown scores [B]; higher = more unknown."""
        return self._scored(self._observation(features, logits))

    def p_values(self, features: ArrayLike | None = None, logits: ArrayLike | None = None) -> NDArray[np.float32]:
        """Return p-values [B]; small = unlike the known images."""
        seen = self._observation(features, logits)
        p_values_B: NDArray[np.float32] = self._calibration.p_values(self._scored(seen), self._predicted(seen))
        return p_values_B

    def predict(self, features: ArrayLike | None = None, logits: ArrayLike | None = None) -> NDArray[np.bool_]:
        """Tell for each image whether it is called unknown, [B]."""
        return self.p_values(features, logits) <= self.false_alarm_rate

    def _scored(self, seen: Observation) -> NDArray[np.float32]:
        if self._fitted is None:
            raise ConfigError("Detector: fit it first")
        scores_B: NDArray[np.float32] = self._fitted.score(seen).float().numpy()
        return scores_B

    def _predicted(self, seen: Observation) -> NDArray[np.int64] | None:
        return seen.logits_BK.argmax(1).numpy() if self.per_class else None

    def _observation(self, features: ArrayLike | None, logits: ArrayLike | None) -> Observation:
        needed = [("features", features)] if self.kind in OF_FEATURES else []
        needed += [("logits", logits)] if self.kind not in OF_FEATURES or self.kind == "vim" or self.per_class else []
        if missing := [name for name, values in needed if values is None]:
            raise ConfigError(f"{self.kind}: needs {' and '.join(missing)}")
        features_BF = None if features is None else _matrix(features)
        count = len(_matrix(logits)) if features_BF is None else len(features_BF)  # type: ignore[arg-type]
        logits_BK = torch.zeros(count, 1) if logits is None else _matrix(logits)
        return Observation(logits_BK.new_empty(len(logits_BK), 0), logits_BK, features_BF)


def _matrix(values: ArrayLike) -> Tensor:
    """Return values as float32 [B, N]. Raises ConfigError for another shape, or values that are not finite."""
    matrix = torch.as_tensor(np.array(values)).float()
    if matrix.ndim != 2:
        raise ConfigError(f"an array of shape {list(matrix.shape)}; expected one row per image")
    if not matrix.isfinite().all():
        raise ConfigError("an array with values that are not finite numbers")
    return matrix
