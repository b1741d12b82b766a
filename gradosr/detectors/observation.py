"""What a detector sees of images, and what it is fitted on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from gradosr.errors import ClassifierError
from gradosr.gradients import Head

NO_HEAD = "the detector needs a linear layer that makes the logits, and this classifier has none"


@dataclass(frozen=True)
class Observation:
    """B images, C coordinates (objectives * parameter tensors), K classes, F features, M middle channels.

    Of several views, their mean.
    """

    log_norms_BC: Tensor
    """C is 0 for a detector without objectives."""
    logits_BK: Tensor
    features_BF: Tensor | None = None
    """Penultimate; None where no linear layer makes the logits."""
    middle_BM: Tensor | None = None
    """Activations before the middle layer, mean over positions; None where no layer has a rule."""
    watched: Mapping[str, Tensor] = field(default_factory=dict)
    """What watchers saw, by coordinate, each [B]."""

    def _of(self, change: Callable[[Tensor], Tensor]) -> "Observation":
        changed = {name: change(values) for name, values in self._tensors().items()}
        return replace(self, **changed, watched={name: change(values) for name, values in self.watched.items()})

    def _tensors(self) -> dict[str, Tensor]:
        own = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: values for name, values in own.items() if isinstance(values, Tensor)}

    def features(self) -> Tensor:
        """[B, F]. Raises ClassifierError where there are none."""
        if self.features_BF is None:
            raise ClassifierError(NO_HEAD)
        return self.features_BF

    def middle(self) -> Tensor:
        """[B, M]. Raises ClassifierError where there are none."""
        if self.middle_BM is None:
            raise ClassifierError("the detector needs a convolution or a linear layer, and this classifier has none")
        return self.middle_BM

    def __getitem__(self, rows: Tensor) -> "Observation":
        return self._of(lambda values: values[rows])

    def __len__(self) -> int:
        return len(self.logits_BK)

    def mean_of_views(self, views: int) -> "Observation":
        """Of the views of B images, one view after the other [views * B], the mean."""
        return self._of(lambda values: values.unflatten(0, (views, -1)).mean(0))

    def finite(self) -> Tensor:
        """Whether everything seen of an image is a finite number, [B]."""
        everything = [*self._tensors().values(), *self.watched.values()]
        return torch.stack([values.reshape(len(self), -1).isfinite().all(1) for values in everything]).all(0)

    @classmethod
    def joined(cls, pieces: Sequence["Observation"]) -> "Observation":
        """The images of all pieces, in order."""
        first = pieces[0]
        tensors = {name: torch.cat([getattr(piece, name) for piece in pieces]) for name in first._tensors()}
        watched = {name: torch.cat([piece.watched[name] for piece in pieces]) for name in first.watched}
        return cls(**tensors, watched=watched)


@dataclass(frozen=True)
class Known:
    """What a detector is fitted on: images of known classes that the classifier was not trained on."""

    observation: Observation
    labels_B: Tensor
    """Indices into the classifier's classes."""
    head: Head | None = None
    """The layer that makes the logits of the features; None where there is none."""

    def last_layer(self) -> Head:
        """The head. Raises ClassifierError where there is none."""
        if self.head is None:
            raise ClassifierError(NO_HEAD)
        return self.head
