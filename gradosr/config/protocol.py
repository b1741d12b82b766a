"""The protocol that measures open-set recognition."""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from gradosr.config.classifier import ClassifierSettings, TrainSettings
from gradosr.config.detectors import Detector, ObjectiveName
from gradosr.config.fit import FitJob
from gradosr.config.inputs import MAX_PIXELS, Input
from gradosr.config.settings import Settings
from gradosr.config.store import StoreFields
from gradosr.config.uris import Uri


class OsrTask(Settings):
    """One classifier and its known classes; the other classes of the test images are unknown to it."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Of its folder below `output`."""
    classifier: ClassifierSettings
    train: TrainSettings | None = None
    """Instead of classifier.weights."""
    held_out: Annotated[float, Field(gt=0, lt=1)] | Uri = 0.1
    """Of the input images; see FitJob."""
    unknown: tuple[str, ...] = ()
    """Test images of these classes alone are its unknown ones, those of further classes are left out; none: all are."""
    detectors: dict[str, Detector] = {}
    """Of this task alone, beside or instead of those of the same name in the protocol."""


class OsrProtocol(StoreFields):
    """Open-set recognition measured: every detector, on the same classifiers, the same images and the same views."""

    data: str = ""
    """Stands for {data} anywhere in this document."""
    input: Input
    """Labelled images of all classes, for fitting (and training): known images alone are read of it."""
    test: Input
    """Labelled images of all classes, used for nothing else."""
    far: dict[str, Input | PositiveInt] = {}
    """Images that show no class at all: an input, or how many to make of a kind (see gradosr.lab.evaluation.far)."""
    shows: dict[str, tuple[str, ...]] = {}
    """By class: labels of far images that show it after all. They are left out where the class is known."""
    tasks: Annotated[tuple[OsrTask, ...], Field(min_length=1)]
    train: TrainSettings | None = None
    """Of the tasks that have no recipe of their own and whose classifier comes without weights."""
    detectors: Annotated[dict[str, Detector], Field(min_length=1)]
    """By the name they get in the tables. The first is held against the best baseline."""
    objectives: tuple[ObjectiveName, ...] = ("all_hot", "predicted", "max_logit")
    """Whose coordinates are each measured alone."""
    output: Uri
    """Folder; the same command goes on where it was."""
    false_alarm_rate: Annotated[float, Field(gt=0, lt=1)] = 0.05
    resamplings: PositiveInt = 1000
    """Of the bootstrap intervals."""
    batch_size: PositiveInt = 128
    device: Literal["auto", "cpu", "cuda"] = "auto"
    max_pixels: PositiveInt = MAX_PIXELS
    seed: int = 0

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
        """The task with the protocol's recipe, where it needs one and has none."""
        lacking = task.train is None and not task.classifier.trained
        return task.model_copy(update={"train": self.train}) if lacking else task

    def fit_job(self, task: OsrTask, detector: "Detector") -> FitJob:
        """One detector of one task; a recipe beside weights is for the transfer detector's classifier 1."""
        trains = not task.classifier.trained or detector.kind == "transfer"
        return FitJob(
            classifier=task.classifier,
            train=task.train if trains else None,
            input=self.input,
            held_out=task.held_out,
            detector=detector,
            false_alarm_rate=self.false_alarm_rate,
            bundle=self.output,
            **{name: getattr(self, name) for name in ("batch_size", "device", "max_pixels", "seed", "store", "stores")},
        )


def _replaced(document: Any, data: str) -> Any:
    if isinstance(document, dict):
        return {key: _replaced(value, data) for key, value in document.items()}
    if isinstance(document, list | tuple):
        return [_replaced(value, data) for value in document]
    return document.replace("{data}", data) if isinstance(document, str) else document
