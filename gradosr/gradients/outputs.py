"""Outputs of a classifier: logits [B, K], or a structure that contains them.

Legend: B batch, K classes, F features.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from gradosr.errors import ClassifierError


@dataclass(frozen=True)
class Head:
    """The linear layer that computes the logits z = W h + b."""

    weight_KF: Tensor
    bias_K: Tensor
    """The layer's bias; zeros if it has none."""


def pick_logits(classifier: nn.Module, entry: int | str) -> None:
    """Make the classifier return one entry of its output: an index, a key, or the name of a field.

    This uses a hook instead of a wrapper, so that parameters keep their names and copies keep the hook. An output that
    is already a tensor is returned unchanged: googlenet and inception_v3 return a tuple only in training mode. The
    forward pass raises ClassifierError if the output has no such tensor.
    """
    classifier.register_forward_hook(partial(_picked, entry))


def _picked(entry: int | str, _classifier: nn.Module, _args: Any, output: Any) -> Tensor:
    picked = output if isinstance(output, Tensor) else _tensors(output).get(entry)
    if picked is None:
        raise ClassifierError(
            f"classifier.logits: {entry} is none of the tensors that the classifier returns ({_listed(output)})"
        )
    return picked


def checked_logits(output: Any, batch: int) -> Tensor:
    """Return a classifier's output after checking it.

    Raise ClassifierError unless it is logits [batch, K] of at least two classes.
    """
    if tensors := _tensors(output):
        logits = [entry for entry, tensor in tensors.items() if tensor.dim() == 2 and len(tensor) == batch]
        advice = (
            f"pick the logits by classifier.logits: {logits[0]}, or by pick_logits(classifier, {logits[0]!r})"
            if logits
            else "none of them is logits [batch, classes]"
        )
        raise ClassifierError(f"the classifier returns a {_listed(output)}; {advice}")
    if not isinstance(output, Tensor) or output.dim() != 2 or output.shape[0] != batch:
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ClassifierError(f"the classifier returns {found} for {batch} images; expected logits [batch, classes]")
    if output.shape[1] < 2:
        raise ClassifierError(
            f"the classifier gives logits {tuple(output.shape)} for {batch} images; expected one for each of at least "
            "two classes (of a sigmoid's single logit z: [0, z])"
        )
    return output


def _tensors(output: Any) -> dict[int | str, Tensor]:
    """Return the tensors in a mapping, a tuple or list, or an object.

    Entries of a tuple are keyed by index, and also by name if they have names.
    """
    if isinstance(output, Tensor):
        return {}
    if isinstance(output, Mapping):
        entries = dict(output)
    elif isinstance(output, tuple | list):
        entries = {**getattr(output, "_asdict", dict)(), **dict(enumerate(output))}
    else:
        entries = getattr(output, "__dict__", {})
    return {entry: tensor for entry, tensor in entries.items() if isinstance(tensor, Tensor)}


def _listed(output: Any) -> str:
    return f"{type(output).__name__} of {', '.join(map(str, _tensors(output))) or 'no tensors'}"
