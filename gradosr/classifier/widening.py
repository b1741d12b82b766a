"""A classifier with one class more: built anew with a further output, with all its weights and one new row.

K old classes, F features.
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gradosr.classifier.architectures import LIBRARIES
from gradosr.classifier.build import build_classifier
from gradosr.errors import ClassifierError, ConfigError
from gradosr.gradients import Head

OUTPUTS = "num_classes"
"""Argument by which factories take the number of classes."""


def wider_args(arch: str, args: Mapping[str, Any], classes: int) -> dict[str, Any]:
    """Return the arguments that build an architecture with `classes` classes. Raises ConfigError if none would."""
    if OUTPUTS not in args and arch.partition(":")[0] not in LIBRARIES:
        raise ConfigError(f"{arch}: its args have no {OUTPUTS}, so it cannot be built with one class more")
    return {**args, OUTPUTS: classes} if OUTPUTS in args else dict(args)


def head_names(classifier: nn.Module, head: Head | None) -> tuple[str, str]:
    """Return the names of the weight and the bias of the layer that makes the logits.

    Raises ClassifierError if they are not parameters of their own.
    """
    if head is None:
        raise ClassifierError("a new class needs a linear layer that makes the logits, and this classifier has none")
    places = {parameter.data_ptr(): name for name, parameter in classifier.named_parameters()}
    weight, bias = (places.get(tensor.data_ptr()) for tensor in (head.weight_KF, head.bias_K))
    if weight is None or bias is None:
        what = "weight is computed from other parameters" if weight is None else "layer has no bias"
        raise ClassifierError(f"a new class needs a row of its own in the last layer, and its {what}")
    return weight, bias


def widened(
    classifier: nn.Module,
    rows: Mapping[str, Tensor],
    arch: str,
    args: Mapping[str, Any],
    classes: int,
    trusted: Collection[str] = (),
    logits: int | str | None = None,
) -> nn.Module:
    """Build an architecture with `classes` classes, one more than the classifier has, and give it the same weights.

    `rows` are the new rows of the last layer's parameters by name. Other tensors that have a row per class serve
    training alone (the auxiliary heads of googlenet and inception_v3), and get zeros. Raises ClassifierError if the
    architecture differs in anything else.
    """
    wider = build_classifier(arch, args, classes, trusted, logits)
    own, found = classifier.state_dict(), wider.state_dict()
    if own.keys() != found.keys():
        raise ClassifierError(f"{arch}: with {classes} classes it has other weights than with {classes - 1}")
    for name, tensor in found.items():
        old = own[name].to(tensor)
        if tensor.shape != old.shape:
            row = rows[name].to(old) if name in rows else old.new_zeros(old.shape[1:])
            old = torch.cat([old, row[None]])
        if tensor.shape != old.shape:
            raise ClassifierError(
                f"{arch}: with {classes} classes, {name} is {tuple(tensor.shape)}; expected {tuple(old.shape)}"
            )
        found[name] = old
    wider.load_state_dict(found)
    return wider
