"""Objectives: the losses that are backpropagated, one line each in OBJECTIVES.

Legend: B batch, K known classes. Each objective maps logits_BK to a loss per sample, [B], in nats (max_logit: in
logits), without reduction over the batch, so that the gradient of the summed loss holds each sample's own gradient.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from gradosr.errors import ConfigError

Objective = Callable[[Tensor], Tensor]


def confounding_label(classes: int, hot: int, seed: int = 0) -> Tensor:
    """Return a 0/1 vector [K] with `hot` ones at positions drawn with the seed.

    The paper allows every number of ones except one. Raise ConfigError for an invalid number.
    """
    if hot == 1 or not 0 <= hot <= classes:
        raise ConfigError(
            f"objective n_hot:{hot}: a confounding label of {classes} classes has 0 or 2 to {classes} ones"
        )
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(seed))
    label_K = torch.zeros(classes)
    label_K[order[:hot]] = 1.0
    return label_K


def confounding_loss(logits_BK: Tensor, hot: int, seed: int = 0) -> Tensor:
    """Return the binary cross entropy between sigmoids and one confounding label, averaged over classes.

    Source: the paper (Lee & AlRegib), section 2.
    """
    label_K = _label_like(logits_BK.shape[1], hot, seed, logits_BK.device, logits_BK.dtype)
    target_BK = label_K.expand_as(logits_BK)
    return F.binary_cross_entropy_with_logits(logits_BK, target_BK, reduction="none").mean(1)


@functools.cache
def _label_like(classes: int, hot: int, seed: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return a cached copy of the label on the device.

    An upload would wait for all work queued on the device, and cannot be part of a CUDA graph.
    """
    with torch.inference_mode(False):
        return confounding_label(classes, hot, seed).to(device, dtype)


def predicted_loss(logits_BK: Tensor) -> Tensor:
    """Return the cross entropy against the predicted class."""
    return F.cross_entropy(logits_BK, logits_BK.argmax(1), reduction="none")


def uniform_loss(logits_BK: Tensor) -> Tensor:
    """Return the cross entropy against the uniform distribution (GradNorm, Huang et al., NeurIPS 2021)."""
    return -F.log_softmax(logits_BK, 1).mean(1)


def largest_logit(logits_BK: Tensor) -> Tensor:
    """Return the largest logit, which does not saturate when the classifier is certain.

    Source: GAIA-Z, arXiv 2311.09620, the authors' code.
    """
    return logits_BK.max(1).values


OBJECTIVES: dict[str, Objective] = {
    "all_hot": lambda logits_BK: confounding_loss(logits_BK, logits_BK.shape[1]),
    "all_zero": lambda logits_BK: confounding_loss(logits_BK, 0),
    "predicted": predicted_loss,
    "uniform": uniform_loss,
    "max_logit": largest_logit,
}


def objective(name: str) -> Objective:
    """Return the objective with this name: a key of OBJECTIVES, `n_hot:N` or `n_hot:N:SEED`.

    Raise ConfigError for any other name.
    """
    if name in OBJECTIVES:
        return OBJECTIVES[name]
    kind, *numbers = name.split(":")
    if kind == "n_hot" and 1 <= len(numbers) <= 2 and all(number.isdecimal() for number in numbers):
        hot, seed = int(numbers[0]), int(numbers[1]) if len(numbers) == 2 else 0
        return lambda logits_BK: confounding_loss(logits_BK, hot, seed)
    raise ConfigError(f"objective {name}: unknown (valid: {', '.join(OBJECTIVES)}, n_hot:N, n_hot:N:SEED)")
