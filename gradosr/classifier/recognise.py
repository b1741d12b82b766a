"""Recognition of the classifier of a file of weights: its number of classes, and perhaps its architecture."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision import models

from gradosr.classifier.weights import PREFIXES, read_weights
from gradosr.store import Store

TRIED = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "resnext50_32x4d"),
    *("mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small", "efficientnet_b0", "efficientnet_v2_s"),
    *("convnext_tiny", "convnext_small", "densenet121", "vgg16", "vit_b_16", "swin_t", "regnet_y_400mf"),
)
"""Architectures of torchvision that weights are compared with."""


class Recognised(NamedTuple):
    """A classifier as far as its weights tell."""

    classes: int | None
    """Length of the last bias, or rows of the last matrix."""
    arch: str | None
    """Architecture with parameters of these names and shapes."""


def recognise(store: Store, uri: str) -> Recognised:
    """Recognise the classifier of a file of weights. Raises the errors of reading it."""
    weights = read_weights(store, uri).tensors
    last = next((one for one in reversed(weights.values()) if one.ndim in (1, 2)), None)
    classes = None if last is None else len(last)
    shapes = [_shapes(weights, prefix) for prefix in ("", *PREFIXES)]
    names = (name for name in TRIED if classes and _own_shapes(name, classes) in shapes)
    found = next(names, None)
    return Recognised(classes, found and f"torchvision:{found}")


def _shapes(weights: Mapping[str, Tensor], prefix: str) -> dict[str, tuple[int, ...]]:
    kept = ((name.removeprefix(prefix), one) for name, one in weights.items())
    return {name: tuple(one.shape) for name, one in kept if not name.endswith("num_batches_tracked")}


def _own_shapes(name: str, classes: int) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return _shapes(models.get_model_builder(name)(weights=None, num_classes=classes).state_dict(), "")
