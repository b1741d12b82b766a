"""The classifier of a job: architecture, weights, transform, training recipe."""

from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, StrictInt, field_validator, model_validator

from gradosr.config.settings import Settings
from gradosr.config.uris import Uri, absolute


class TransformSettings(Settings):
    """From a decoded image to the classifier's input; part of the run's fingerprint."""

    resize: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    """Pixels of the shorter side, or [height, width]; none leaves the size alone."""
    crop: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    """Centre crop, a side or [height, width] in pixels, after the resize; zero-padded where the image is smaller."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Per channel, of pixels in 0..1."""
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.229, 0.224, 0.225)
    """Per channel, of pixels in 0..1."""
    interpolation: Literal["bilinear", "bicubic", "nearest"] = "bilinear"
    """Of the resize; bilinear and bicubic are antialiased."""

    @model_validator(mode="after")
    def _one_size(self) -> "TransformSettings":
        if self.crop is None and not isinstance(self.resize, tuple):
            raise ValueError("images of a batch need one size: give crop, or resize as [height, width]")
        return self


class TrainSettings(Settings):
    """A plain recipe for those who bring no classifier: SGD with momentum, one-cycle rate, crop and flip."""

    epochs: PositiveInt = 20
    batch_size: PositiveInt = 128
    learning_rate: PositiveFloat = 0.1
    """The highest of the one-cycle schedule."""
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    crop_padding: int = Field(0, ge=0)
    """Random crops after padding by this many pixels on each side (the CIFAR recipe takes 4)."""
    flip: bool = False
    """Mirror half of the images."""
    cutout: int = Field(0, ge=0)
    """Side in pixels of a square of each image that is set to 0 (DeVries & Taylor, 2017); 8 suits CIFAR, 0 is none."""
    rand_augment: int = Field(0, ge=0)
    """RandAugment's operations per image (Cubuk et al., 2020), at torchvision's magnitude; 2 is usual, 0 is none."""
    average: float = Field(0.0, ge=0, lt=1)
    """Decay per step of an exponential average of the weights, which is what is kept; .999 is usual, 0 is none."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the forward pass and what autograd makes of it (autocast); weights stay float32."""
    seed: int = 0


OutputEntry = StrictInt | str
"""Index, key or field of what a classifier returns."""
LIBRARIES = ("torchvision", "timm", "transformers")
"""Whose architectures are named, and need no trust."""
FOLDER = "hf:"
"""Before the URI of a model folder."""


class ClassifierSettings(Settings):
    """The classifier: architecture, weights, classes, transform."""

    arch: str
    """torchvision:NAME, timm:NAME, hf:URI (a folder of config.json and model.safetensors), or package.module:factory
    (imported because this config names it)."""
    args: dict[str, Any] = {}
    """Keyword arguments of the architecture; none that fetch or read files."""
    weights: Uri | None = None
    """URI of a .safetensors file or a torch checkpoint of plain tensors; none with a `train` section, or a folder."""
    weights_entry: str | None = None
    """Which entry of the checkpoint; none takes the first of state_dict_ema, model_ema, ema, state_dict,
    model_state_dict, model."""
    classes: tuple[str, ...] | Uri | None = None
    """Class names in logit order, or the URI of a JSON list; none takes the folder's, else `known`."""
    logits: OutputEntry | None = None
    """Which entry of a returned tuple, mapping or object holds the logits; none where they are all that is returned."""
    transform: TransformSettings | None = None
    """None takes what the library says of its weights: torchvision's, timm's, a folder's preprocessor_config.json."""

    @field_validator("arch")
    @classmethod
    def _absolute_folder(cls, arch: str) -> str:
        return FOLDER + absolute(arch.removeprefix(FOLDER)) if arch.startswith(FOLDER) else arch

    @property
    def trained(self) -> bool:
        """Whether it comes with weights."""
        return self.weights is not None or self.arch.startswith(FOLDER)


class CompleteClassifier(ClassifierSettings):
    """With everything that ClassifierSettings may leave out; its `arch` is no folder."""

    classes: tuple[str, ...]
    transform: TransformSettings
