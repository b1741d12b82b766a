"""Location of the batch dimension in each call's tensors, found by exchanging one image and observing the changes."""

import torch
from torch import Tensor, nn

from gradosr.errors import ClassifierError
from gradosr.gradients.passes import forward
from gradosr.gradients.recorder import EXCHANGED, Record, Recorder


class Influence(ClassifierError):
    """The error for images that change each other's logits.

    It can also mean that a tensor with as many rows as the batch was mistaken for a batch.
    """


def find_layouts(classifier: nn.Module, probe: Tensor, recorder: Recorder, logits: Tensor) -> dict[int, int]:
    """Map each call's number to the number of positions before the batch, for calls in which the batch is found."""
    exchanged = probe.clone()
    exchanged[EXCHANGED] = exchanged[EXCHANGED].flip(0, 1).roll(1, 2) + 1.0
    other = Recorder(classifier, exchanged.requires_grad_(), exchanged=True)
    with other:
        changed = forward(classifier, other.images).detach()
    others = [row for row in range(len(probe)) if row != EXCHANGED]
    if not torch.allclose(changed[others], logits[others], rtol=1e-4, atol=1e-5, equal_nan=True):
        check_repeats(classifier, probe, logits)
        raise Influence("images of one batch influence each other's logits; per-image gradients do not exist")
    found = {
        number: _batch_position(record, other.records[number], len(probe))
        for number, record in recorder.records.items()
        if number in other.records
    }
    return {number: before for number, before in found.items() if before is not None}


def check_repeats(classifier: nn.Module, probe: Tensor, logits: Tensor) -> None:
    """Raise ClassifierError if the same images give different logits in another forward pass."""
    if not torch.allclose(forward(classifier, probe), logits, rtol=1e-4, atol=1e-5, equal_nan=True):
        raise ClassifierError(
            "the classifier returns different logits for the same images each time; make its forward pass repeatable "
            "(F.dropout drops in eval mode too unless it is given training=self.training)"
        )


def _batch_position(record: Record, other: Record, batch: int) -> int | None:
    """Return the number of positions before the batch, or None if no layout explains the changes."""
    if record.rule.source:  # the output does not depend on the images; the comparison with autograd verifies this
        return 1
    features = record.call.feature_dims
    for one, another in ((record.output, other.output), (record.call.x.detach(), other.call.x.detach())):
        found = _changed_image(one, another, features, batch)
        if found is not None:
            return found
    return None  # a large bias may hide a change in the output, but here the input does not change either


def _changed_image(one: Tensor, another: Tensor, feature_dims: int, batch: int) -> int | None:
    """Return the smallest number of positions before the batch that explains the changes.

    With it, only positions of the exchanged image differ.
    """
    if one.shape != another.shape or one.dim() <= feature_dims:
        return None
    difference = (one - another).abs().flatten(one.dim() - feature_dims).amax(-1).flatten().cpu()
    if len(difference) % batch:
        return None
    rounding = 16 * torch.finfo(difference.dtype).eps * float(one.abs().max())
    return next((found for noise in (0.0, rounding) if (found := _before_batch(difference > noise, batch))), None)


def _before_batch(changed: Tensor, batch: int) -> int | None:
    # A position may stay unchanged (a class token, padding of a window), but no other image's may change. If several
    # layouts remain, the comparison with autograd verifies the smallest.
    each = len(changed) // batch
    others = [row for row in range(batch) if row != EXCHANGED]
    possible = (
        before
        for before in range(1, each + 1)
        if each % before == 0 and not changed.view(before, batch, -1)[:, others].any()
    )
    return next(possible, None) if changed.any() else None
