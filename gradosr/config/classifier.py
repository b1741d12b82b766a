"""Settings of a job's classifier: architecture, weights, transform, training recipe."""

from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, StrictInt, field_validator, model_validator

from gradosr.config.settings import Settings
from gradosr.config.uris import Uri, absolute


class TransformSettings(Settings):
    """Conversion of a decoded image to the classifier's input; part of the run's fingerprint."""

    resize: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    """Length of the shorter side in pixels, or [height, width]; without it the size is unchanged."""
    crop: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    """Centre crop after the resize, one side or [height, width] in pixels; smaller images are padded with zeros."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean per channel, for pixels in 0..1."""
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.229, 0.224, 0.225)
    """Standard deviation per channel, for pixels in 0..1."""
    interpolation: Literal["bilinear", "bicubic", "nearest"] = "bilinear"
    """Interpolation of the resize; bilinear and bicubic are antialiased."""

    @model_validator(mode="after")
    def _one_size(self) -> "TransformSettings":
        if self.crop is None and not isinstance(self.resize, tuple):
            raise ValueError("images of a batch need one size: give crop, or resize as [height, width]")
        return self


class TrainSettings(Settings):
    """A plain training recipe for users without a classifier: SGD with momentum, one-cycle rate, crop and flip."""

    epochs: PositiveInt = 20
    """Passes over the training images."""
    batch_size: PositiveInt = 128
    """Images per step."""
    learning_rate: PositiveFloat = 0.1
    """Highest learning rate of the one-cycle schedule."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of SGD (Nesterov's)."""
    weight_decay: float = Field(5e-4, ge=0)
    """Weight decay of SGD."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the label that is spread over all classes."""
    crop_padding: int = Field(0, ge=0)
    """Pixels of padding on each side before a random crop (the CIFAR recipe uses 4)."""
    flip: bool = False
    """Mirror half of the images."""
    cutout: int = Field(0, ge=0)
    """Side in pixels of a square set to 0 in each image (DeVries & Taylor, 2017); 8 suits CIFAR, 0 turns it off."""
    rand_augment: int = Field(0, ge=0)
    """Number of RandAugment operations per image (Cubuk et al., 2020), at torchvision's magnitude; 2 is usual, 0 turns
    it off."""
    average: float = Field(0.0, ge=0, lt=1)
    """Decay per step of an exponential average of the weights, which replaces the trained weights; 0.999 is usual, 0
    turns it off."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the forward pass and of its gradients (autocast); weights stay float32."""
    seed: int = 0
    """Seed of the initial weights, the order of the images and their augmentation."""


OutputEntry = StrictInt | str
"""Index, key or field name in the output of a classifier."""
LIBRARIES = ("torchvision", "timm", "transformers")
"""Libraries whose architectures are loaded by name, without being listed in `trust`."""
FOLDER = "hf:"
"""Prefix before the URI of a model folder."""


class NetworkSettings(Settings):
    """A network: architecture, weights, transform."""

    arch: str
    """torchvision:NAME, timm:NAME, hf:URI (a folder with config.json and model.safetensors), or package.module:factory
    (imported because this config names it)."""
    args: dict[str, Any] = {}
    """Keyword arguments of the architecture; arguments that fetch or read files are not allowed."""
    weights: Uri | None = None
    """URI of a .safetensors file or a torch checkpoint of plain tensors; a `train` section starts from them, or needs
    none; a model folder brings its own."""
    weights_entry: str | None = None
    """Entry of the checkpoint to load. Default: the first of state_dict_ema, model_ema, ema, state_dict,
    model_state_dict, model."""
    transform: TransformSettings | None = None
    """Input transform. Default: the library's own for these weights, from torchvision, timm, or a folder's
    preprocessor_config.json."""

    @field_validator("arch")
    @classmethod
    def _absolute_folder(cls, arch: str) -> str:
        if ":" not in arch:
            forms = f"torchvision:{arch}, timm:{arch}, or package.module:factory"
            raise ValueError(f"{arch or 'empty'}: name its library as well, as in {forms}")
        return FOLDER + absolute(arch.removeprefix(FOLDER)) if arch.startswith(FOLDER) else arch

    @property
    def folder(self) -> str | None:
        """The URI of the model folder that `arch` names; None if it names something else."""
        return self.arch.removeprefix(FOLDER) if self.arch.startswith(FOLDER) else None

    @property
    def trained(self) -> bool:
        """True if the network comes with weights."""
        return self.weights is not None or self.folder is not None


class ClassifierSettings(NetworkSettings):
    """The classifier: architecture, weights, classes, transform."""

    classes: tuple[str, ...] | Uri | None = None
    """Class names in logit order, or the URI of a JSON list. Default: the model folder's, or else `known`."""
    logits: OutputEntry | None = None
    """Entry of a returned tuple, mapping or object that holds the logits; leave it out if the classifier returns only
    logits."""


class CompleteClassifier(ClassifierSettings):
    """Classifier settings with nothing left to defaults; `arch` is not a folder."""

    classes: tuple[str, ...]
    transform: TransformSettings
