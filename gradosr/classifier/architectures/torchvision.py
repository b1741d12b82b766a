"""Architectures of torchvision: torchvision:NAME."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torchvision import models

from gradosr.classifier.architectures.stated import Stated, check_listed, stated


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
