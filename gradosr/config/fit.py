"""Settings of fit jobs."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from gradosr.config.classifier import ClassifierSettings, CompleteClassifier, TrainSettings
from gradosr.config.compute import DeviceName
from gradosr.config.detectors import Detector, OneClassSettings, TransferSettings
from gradosr.config.inputs import MAX_PIXELS, Input
from gradosr.config.store import StoreFields
from gradosr.config.uris import Uri

CalibrationKind = Literal["pooled", "per_class"]


class FitJob(StoreFields):
    """Fit a detector to a classifier (trained by this job or elsewhere) and save both as a bundle."""

    classifier: ClassifierSettings
    """Classifier to fit the detector to."""
    train: TrainSettings | None = None
    """Training recipe for the classifier; it starts from classifier.weights if there are any (fine-tuning). With
    detector.kind transfer it trains classifier 1, and the classifier itself only if that has no weights."""
    input: Input
    """Labelled known images."""
    known: tuple[str, ...] = ()
    """Classes to keep; images of other classes are left out. Default: the classifier's classes."""
    held_out: Annotated[float, Field(gt=0, le=1)] | Uri = 0.1
    """Images excluded from training: a fraction (1: all, for the classifier has seen none of them), or the URI of keys
    or source paths (one per line, a JSON list, or an object that contains a list as `held_out`)."""
    detector: Detector = OneClassSettings()
    """Unknown detector to fit."""
    false_alarm_rate: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of known images that may be called unknown: is_unknown means p_value <= this rate."""
    calibration: CalibrationKind = "pooled"
    """Held-out known images that an image's p-value compares it with: all of them, so that false_alarm_rate holds for
    known images on average (`pooled`), or those of the same predicted class, so that it holds for each predicted class
    by itself (`per_class`). Per class, every class that is predicted needs 1 / false_alarm_rate - 1 such images."""
    precisions: tuple[Literal["tf32", "bfloat16"], ...] = ()
    """Precisions, besides float32, that score jobs may use with the bundle. The detector is calibrated in each of them,
    because p-values hold only in the precision of their calibration; each costs another pass over those images."""
    known_examples: Literal["thumbnails", "keys", "none"] = "thumbnails"
    """A few hundred held-out images that the bundle keeps, for audits to show beside unknown ones: features and keys
    with thumbnails (64 pixels), without (`keys`), if pictures must not leave their archive, or no images at all."""
    bundle: Uri
    """Folder or prefix to write the bundle to."""
    batch_size: PositiveInt = 64
    """Images per forward pass."""
    device: DeviceName = "auto"
    """Device to compute on; auto picks CUDA if there is a CUDA device."""
    max_pixels: PositiveInt = MAX_PIXELS
    """Largest image, in pixels according to its header, that is decoded; others are left out."""
    expected_accuracy: Annotated[float, Field(gt=0, le=1)] | None = None
    """Accuracy that the classifier is known to have; a clearly lower one on the held-out images is warned of."""
    seed: int = 0
    """Seed for drawing the held-out fraction, and for splitting held-out images into fitting and calibration."""

    @model_validator(mode="after")
    def _trained_somewhere(self) -> "FitJob":
        if self.train is not None and self.held_out == 1:
            raise ValueError("held_out: 1 leaves no image to train on; give a smaller share, or a list")
        if not self.classifier.trained and self.train is None:
            raise ValueError("classifier.weights or a train section is required: one of them makes the classifier")
        if isinstance(self.detector, TransferSettings) and self.train is None and self.detector.weights is None:
            raise ValueError("detector.kind transfer needs a train section, or detector.weights: of classifier 1")
        return self


class CompleteFitJob(FitJob):
    """A fit job whose classifier settings are complete, as gradosr.classifier.resolve.complete returns it."""

    classifier: CompleteClassifier
