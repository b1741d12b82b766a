"""Results of a pass over a batch.

Legend: B batch, K classes, P parameter tensors, F penultimate features, M middle channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from gradosr.gradients.outputs import Head


@dataclass(frozen=True)
class SquaredNorms:
    """The representation of a batch under one objective."""

    names: tuple[str, ...]
    """Names of the P parameters, in named_parameters() order."""
    values_BP: Tensor
    """Squared L2 norm of dJ/dp per image (Lee & AlRegib, Eq. 1); float32 for a classifier in bfloat16."""
    logits_BK: Tensor
    features_BF: Tensor | None
    """Input of the linear layer that computes the logits; None if there is no such layer."""
    middle_BM: Tensor | None = None
    """Input of the middle convolution or linear layer, averaged over positions."""
    head: Head | None = None
    """The linear layer that computes the logits from the features."""
    watched: dict[str, Tensor] = field(default_factory=dict)
    """Values that watchers computed from the backward pass, by name, each [B]."""

    def last(self, count: int) -> "SquaredNorms":
        """Return the norms of the last parameters alone."""
        first = len(self.names) - count
        return replace(self, names=self.names[first:], values_BP=self.values_BP[:, first:])

    def none(self) -> "SquaredNorms":
        """Return a copy without images."""
        features = None if self.features_BF is None else self.features_BF[:0]
        middle = None if self.middle_BM is None else self.middle_BM[:0]
        watched = {name: values[:0] for name, values in self.watched.items()}
        return SquaredNorms(self.names, self.values_BP[:0], self.logits_BK[:0], features, middle, self.head, watched)


def joined(pieces: Sequence[SquaredNorms]) -> SquaredNorms:
    """Concatenate the images of all pieces, in order."""
    if len(pieces) == 1:
        return pieces[0]
    features = [piece.features_BF for piece in pieces if piece.features_BF is not None]
    middles = [piece.middle_BM for piece in pieces if piece.middle_BM is not None]
    return SquaredNorms(
        pieces[0].names,
        torch.cat([piece.values_BP for piece in pieces]),
        torch.cat([piece.logits_BK for piece in pieces]),
        torch.cat(features) if features else None,
        torch.cat(middles) if middles else None,
        pieces[0].head,
        {name: torch.cat([piece.watched[name] for piece in pieces]) for name in pieces[0].watched},
    )
