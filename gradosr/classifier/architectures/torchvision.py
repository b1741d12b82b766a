"""Architectures of torchvision: torchvision:NAME."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torchvision import models

from gradosr.classifier.architectures.stated import Stated, check_listed, stated
from gradosr.config import TransformSettings

IMAGENET = TransformSettings(crop=1)
"""A transform with ImageNet's mean and deviation, which `transform_input` undoes for weights from TensorFlow."""


def build(name: str, args: Mapping[str, Any], classes: int) -> nn.Module:
    """Build an architecture of torchvision, as described by `Library`."""
    check_listed("torchvision", name, models.list_models(module=models))
    classifier: nn.Module = models.get_model_builder(name)(weights=None, **{"num_classes": classes, **args})
    return classifier


def transform(name: str, args: Mapping[str, Any]) -> Stated:
    """Return the transform of the newest weights, which are those of `weights="DEFAULT"`."""
    check_listed("torchvision", name, models.list_models(module=models))
    weights = models.get_model_weights(name).DEFAULT
    preset = weights.transforms()
    resize = preset.resize_size
    return stated(
        f"torchvision's {weights}",
        resize=resize[0] if len(resize) == 1 else tuple(resize),
        crop=preset.crop_size[0] if len(preset.crop_size) == 1 else tuple(preset.crop_size),
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=preset.interpolation.value,
    )


def arguments(name: str, transform: TransformSettings) -> dict[str, Any]:
    """Return the arguments of torchvision's loading, as described by `Library`."""
    if name in ("googlenet", "inception_v3") and (transform.mean, transform.std) == (IMAGENET.mean, IMAGENET.std):
        return {"transform_input": True}
    if name.startswith("vit_") and isinstance(transform.crop, int) and transform.crop != 224:
        return {"image_size": transform.crop}
    return {}
