"""Scoring of batches of images, without Ray and without I/O.

B batch, K classes, C coordinates of the representation (objectives * parameter tensors), F features.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradosr.bundle.bundle import Bundle
from gradosr.bundle.calibration import Calibration
from gradosr.bundle.manifest import check_precision
from gradosr.config import ComputeSettings
from gradosr.detectors import restore
from gradosr.scoring.compute import choose_compute
from gradosr.scoring.observer import Observer

DEFAULT = ComputeSettings()

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Scores:
    """The scores of a batch, one row per image as in the result schema; on the CPU."""

    finite: NDArray[np.bool_]
    """False if a logit or a norm is not a finite number; then unknown_score and p_value are nan, is_unknown False."""
    predicted_index: NDArray[np.int32]
    confidence: Floats
    """Highest softmax probability."""
    max_logit: Floats
    energy: Floats
    """Energy, -logsumexp of the logits (Liu et al., NeurIPS 2020); higher = more unknown."""
    unknown_score: Floats
    """Score of the detector; higher = more unknown."""
    p_value: Floats
    """Split-conformal p-value; small = unlike the known images, or those of its predicted class (calibration.py)."""
    is_unknown: NDArray[np.bool_]
    representation_BC: Floats
    signals: Mapping[str, NDArray[np.float16]]
    """Everything that the detector saw, each [B, N], by name; see Observation.signals."""


class Scorer:
    """A bundle on a device: batches of images in, arrays out.

        scorer = Scorer(load_bundle(Store(), "s3://models/animals-v3/"))
        scores = scorer.score(images_BCHW)

    `gradosr.archive.decode` makes such images from encoded bytes (`decode`, `to_input_size`).
    """

    def __init__(self, bundle: Bundle, settings: ComputeSettings = DEFAULT, *, every_norm: bool = False) -> None:
        """Prepare a bundle for scoring, with settings of which a ScoreJob has all.

        With `every_norm`, `Scores.representation_BC` has the norms of all layers, even if the detector needs fewer.
        The bundle's classifier is moved to the device, not copied. Raises ConfigError for what this machine does not
        have, and for a precision in which the bundle is not calibrated.
        """
        self.bundle, self.compute = bundle, choose_compute(settings)
        manifest = bundle.manifest
        check_precision(self.compute.precision, bundle.calibrations)
        self._calibration = bundle.calibrations[self.compute.precision]
        self.observer = Observer(bundle.classifier, manifest.transform, manifest, self.compute, every_norm=every_norm)
        arrays = {name: array.to(self.compute.device) for name, array in bundle.detector.arrays().items()}
        self.detector = restore(manifest.detector, arrays)
        checked = self.observer.check(len(manifest.classes))
        self.widths = {name: values.shape[1] for name, values in checked.observation.signals().items()}
        """Number of values of each signal, by name; see Observation.signals."""

    def score(self, images_BCHW: Tensor) -> Scores:
        """Score uint8 images [B, 3, H, W] at the classifier's input size; B may be 0."""
        return self.start(images_BCHW).wait()

    def start(self, images_BCHW: Tensor) -> "Pending":
        """Start scoring uint8 images without waiting for the device, so the caller can prepare the next batch."""
        observed = self.observer(images_BCHW)
        logits_BK, signals = observed.observation.logits_BK, observed.observation.signals()
        unknown_score_B = self.detector.score(observed.observation).float()
        confidence_B, predicted_B = logits_BK.softmax(1).max(1)
        columns = [
            (logits_BK.isfinite().all(1) & unknown_score_B.isfinite())[:, None],
            predicted_B[:, None],  # exact in float32 up to 16,777,216 classes
            confidence_B[:, None],
            logits_BK.amax(1, keepdim=True),
            -logits_BK.logsumexp(1, keepdim=True),
            unknown_score_B[:, None],
            observed.representation_BC,
            *signals.values(),
        ]
        together_BV = torch.cat([column.float() for column in columns], 1)
        widths = {"representation": observed.representation_BC.shape[1], **self.widths}
        if together_BV.is_cuda:
            values_BV = torch.empty(together_BV.shape, pin_memory=True).copy_(together_BV, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
            return Pending(values_BV, widths, self._calibration, self.bundle.manifest.false_alarm_rate, copied)
        return Pending(together_BV, widths, self._calibration, self.bundle.manifest.false_alarm_rate)


@dataclass(frozen=True)
class Pending:
    """A batch that was given to the device; its scores come back in one copy."""

    values_BV: Tensor
    """Columns: finite, predicted, confidence, max logit, energy, unknown score, representation, each signal."""
    widths: Mapping[str, int]
    """Number of columns of the representation and of each signal, in order."""
    calibration: Calibration
    false_alarm_rate: float
    copied: torch.cuda.Event | None = None

    def wait(self) -> Scores:
        """Wait for the device and return the scores."""
        if self.copied is not None:
            self.copied.synchronize()
        first_B6, *wide = self.values_BV.split([6, *self.widths.values()], 1)
        representation_BC, *signals = wide
        finite, predicted, confidence, max_logit, energy, unknown_score = first_B6.T.contiguous().numpy()
        finite = finite != 0
        unknown_score = np.where(finite, unknown_score, np.float32(np.nan))
        predicted_index = predicted.astype(np.int32)
        p_value = self.calibration.p_values(unknown_score, predicted_index)
        return Scores(
            finite=finite,
            predicted_index=predicted_index,
            confidence=confidence,
            max_logit=max_logit,
            energy=energy,
            unknown_score=unknown_score,
            p_value=p_value,
            is_unknown=p_value <= self.false_alarm_rate,
            representation_BC=representation_BC.numpy(),
            signals={name: stored(values) for name, values in zip(list(self.widths)[1:], signals, strict=True)},
        )


def stored(values_BN: Tensor) -> NDArray[np.float16]:
    """Round values to float16; those beyond its range become its largest or smallest."""
    most = torch.finfo(torch.float16).max
    return values_BN.clamp(-most, most).half().numpy()
