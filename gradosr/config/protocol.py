"""Settings of the protocol that measures open-set recognition."""

from typing import Annotated, Any

from pydantic import Field, PositiveInt, model_validator

from gradosr.config.classifier import ClassifierSettings, TrainSettings
from gradosr.config.compute import DeviceName
from gradosr.config.detectors import Detector, ObjectiveName
from gradosr.config.fit import CalibrationKind, FitJob
from gradosr.config.inputs import MAX_PIXELS, Input
from gradosr.config.settings import Settings
from gradosr.config.store import StoreFields
from gradosr.config.uris import Uri


class OsrTask(Settings):
    """One classifier and its known classes; all other classes of the test images are unknown to it."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Name of the task, and of its folder in `output`."""
    classifier: ClassifierSettings
    """Classifier of the task."""
    train: TrainSettings | None = None
    """Training recipe, used in place of classifier.weights."""
    held_out: Annotated[float, Field(gt=0, lt=1)] | Uri = 0.1
    """Input images excluded from training, in any of the forms that FitJob allows."""
    unknown: tuple[str, ...] = ()
    """Classes whose test images count as unknown; images of other classes that are not known are left out. Default: all
    classes that are not known."""
    detectors: dict[str, Detector] = {}
    """Detectors for this task only; they add to those of the protocol, or replace those of the same name."""


class OsrProtocol(StoreFields):
    """A comparison of detectors for open-set recognition on the same classifiers, images and views."""

    data: str = ""
    """Text that replaces {data} anywhere in this document."""
    input: Input
    """Labelled images of all classes, for fitting (and training); only known images are used."""
    test: Input
    """Labelled images of all classes, used only for testing."""
    far: dict[str, Input | PositiveInt] = {}
    """Images without any of the classes: an input, or the number of images to generate of a kind listed in
    gradosr.lab.evaluation.far."""
    shows: dict[str, tuple[str, ...]] = {}
    """Labels of far images that do show a class, by that class. They are left out in tasks where the class is known."""
    tasks: Annotated[tuple[OsrTask, ...], Field(min_length=1)]
    """Classifiers to compare detectors on, each with its known classes."""
    train: TrainSettings | None = None
    """Training recipe for tasks that have none and whose classifier comes without weights."""
    detectors: Annotated[dict[str, Detector], Field(min_length=1)]
    """Detectors by their name in the tables. The first is compared with the best baseline."""
    objectives: tuple[ObjectiveName, ...] = ("all_hot", "predicted", "max_logit")
    """Objectives whose coordinates are each measured separately."""
    output: Uri
    """Results folder; running the same command again continues an unfinished run."""
    false_alarm_rate: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of known images that may be called unknown, where a threshold is measured."""
    calibration: CalibrationKind = "pooled"
    """Kind of calibration where p-values are measured, as in FitJob."""
    resamplings: PositiveInt = 1000
    """Number of resamplings for the bootstrap intervals."""
    batch_size: PositiveInt = 128
    """Images per forward pass."""
    device: DeviceName = "auto"
    """Device to compute on; auto picks CUDA if there is a CUDA device."""
    max_pixels: PositiveInt = MAX_PIXELS
    """Largest image, in pixels according to its header, that is decoded; others are left out."""
    seed: int = 0
    """Seed of the splits, the generated images and the resamplings."""

    @model_validator(mode="before")
    @classmethod
    def _with_data(cls, document: Any) -> Any:
        return _replaced(document, str(document.get("data", ""))) if isinstance(document, dict) else document

    @model_validator(mode="after")
    def _one_name_each(self) -> "OsrProtocol":
        names = [task.name for task in self.tasks]
        if len(set(names)) < len(names):
            raise ValueError(f"tasks: names must differ ({', '.join(names)})")
        made = ("digits", "noise", "textures", "strokes", "clouds", "shapes")
        if wrong := [name for name, far in self.far.items() if isinstance(far, int) and name not in made]:
            raise ValueError(f"far: {', '.join(wrong)}: only {', '.join(made)} can be made; give an input")
        return self

    def with_recipe(self, task: OsrTask) -> OsrTask:
        """Return the task, with the protocol's training recipe if it needs one and has none."""
        lacking = task.train is None and not task.classifier.trained
        return task.model_copy(update={"train": self.train}) if lacking else task

    def fit_job(self, task: OsrTask, detector: "Detector") -> FitJob:
        """Return the fit job for one detector of one task.

        A training recipe beside weights is for classifier 1 of the transfer detector.
        """
        trains = not task.classifier.trained or detector.kind == "transfer"
        return FitJob(
            classifier=task.classifier,
            train=task.train if trains else None,
            input=self.input,
            held_out=task.held_out,
            detector=detector,
            false_alarm_rate=self.false_alarm_rate,
            calibration=self.calibration,
            bundle=self.output,
            **{name: getattr(self, name) for name in ("batch_size", "device", "max_pixels", "seed", "store", "stores")},
        )


def _replaced(document: Any, data: str) -> Any:
    if isinstance(document, dict):
        return {key: _replaced(value, data) for key, value in document.items()}
    if isinstance(document, list | tuple):
        return [_replaced(value, data) for value in document]
    return document.replace("{data}", data) if isinstance(document, str) else document
