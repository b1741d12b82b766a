"""Fit jobs."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from gradosr.config.classifier import ClassifierSettings, CompleteClassifier, TrainSettings
from gradosr.config.detectors import Detector, TransferSettings
from gradosr.config.inputs import MAX_PIXELS, Input
from gradosr.config.store import StoreFields
from gradosr.config.uris import Uri


class FitJob(StoreFields):
    """Fit a detector to a classifier (trained here, or elsewhere) and save both as a bundle."""

    classifier: ClassifierSettings
    train: TrainSettings | None = None
    """A recipe: instead of classifier.weights, and for the transfer detector's classifier 1."""
    input: Input
    """Labelled known images."""
    known: tuple[str, ...] = ()
    """Classes to keep; images of other classes are left out. Default: the classifier's classes."""
    held_out: Annotated[float, Field(gt=0, lt=1)] | Uri = 0.1
    """Images that train nothing: a fraction, or the URI of keys or source paths (one a line, a JSON list, or an object
    that holds one as `held_out`)."""
    detector: Detector
    false_alarm_rate: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of known images that may be called unknown: is_unknown = p_value <= this."""
    bundle: Uri
    """Folder or prefix where the bundle goes."""
    batch_size: PositiveInt = 64
    device: Literal["auto", "cpu", "cuda"] = "auto"
    max_pixels: PositiveInt = MAX_PIXELS
    seed: int = 0
    """Draws the held-out fraction, and splits held-out images into fitting and calibration."""

    @model_validator(mode="after")
    def _trained_somewhere(self) -> "FitJob":
        if not self.classifier.trained and self.train is None:
            raise ValueError("classifier.weights or a train section is required: one of them makes the classifier")
        if self.classifier.trained and self.train is not None and self.detector.kind != "transfer":
            raise ValueError("classifier.weights and train exclude each other, except with detector.kind transfer")
        if isinstance(self.detector, TransferSettings) and self.train is None and self.detector.weights is None:
            raise ValueError("detector.kind transfer needs a train section, or detector.weights: of classifier 1")
        return self


class CompleteFitJob(FitJob):
    """See gradosr.classifier.resolve.complete."""

    classifier: CompleteClassifier
