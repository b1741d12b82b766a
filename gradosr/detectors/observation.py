"""The view that a detector has of images, and the material it is fitted on."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gradosr.errors import ClassifierError
from gradosr.gradients import Head

if TYPE_CHECKING:
    from gradosr.config import TransferSettings

SIGNALS = ("logits", "features", "middle", "log_norms")
"""Names of what is seen of an image, in the order in which it is stored."""
NO_HEAD = "the detector needs a linear layer that makes the logits, and this classifier has none"


@dataclass(frozen=True)
class Observation:
    """B images, C coordinates (objectives * parameter tensors), K classes, F features, M middle channels.

    Where an image is seen in several views, their mean.
    """

    log_norms_BC: Tensor
    """Logarithms of the gradient norms; C is 0 for a detector without objectives."""
    logits_BK: Tensor
    features_BF: Tensor | None = None
    """Penultimate features; None where no linear layer makes the logits."""
    middle_BM: Tensor | None = None
    """Activations before the middle layer, mean over positions; None where no layer has a rule."""
    watched: Mapping[str, Tensor] = field(default_factory=dict)
    """Values of the watched representations by coordinate, each [B]."""

    def _with_each(self, change: Callable[[Tensor], Tensor]) -> "Observation":
        changed = {name: change(values) for name, values in self._tensors().items()}
        return replace(self, **changed, watched={name: change(values) for name, values in self.watched.items()})

    def _tensors(self) -> dict[str, Tensor]:
        own = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: values for name, values in own.items() if isinstance(values, Tensor)}

    def features(self) -> Tensor:
        """Return the features [B, F]. Raises ClassifierError where there are none."""
        if self.features_BF is None:
            raise ClassifierError(NO_HEAD)
        return self.features_BF

    def middle(self) -> Tensor:
        """Return the middle activations [B, M]. Raises ClassifierError where there are none."""
        if self.middle_BM is None:
            raise ClassifierError("the detector needs a convolution or a linear layer, and this classifier has none")
        return self.middle_BM

    def signals(self) -> dict[str, Tensor]:
        """Return everything that was seen by name, each [B, N], in the form in which tables and bundles store it.

        The names are those of SIGNALS, and of the watched coordinates.
        """
        own = {name: values for name, values in zip(SIGNALS, self._stored(), strict=True) if values is not None}
        found = own | {name: values_B[:, None] for name, values_B in self.watched.items()}
        return {name: values_BN for name, values_BN in found.items() if values_BN.shape[1]}

    def _stored(self) -> tuple[Tensor | None, ...]:
        return self.logits_BK, self.features_BF, self.middle_BM, self.log_norms_BC

    @classmethod
    def from_signals(cls, signals: Mapping[str, Tensor]) -> "Observation":
        """Make the observation that has these `signals`. Raises KeyError without logits."""
        own = {name: values_BN.float() for name, values_BN in signals.items()}
        logits_BK = own.pop("logits")
        features_BF, middle_BM = own.pop("features", None), own.pop("middle", None)
        log_norms_BC = own.pop("log_norms", logits_BK.new_empty(len(logits_BK), 0))
        watched = {name: values_B1.squeeze(1) for name, values_B1 in own.items()}
        return cls(log_norms_BC, logits_BK, features_BF, middle_BM, watched)

    def taken_for(self, predicted_B: Tensor) -> "Observation":
        """Return the observation with the logits of the predicted classes raised above all others.

        Rounded to float16, logits may be equal that were not. The predicted class then is no longer certain from them,
        and detectors go by it.
        """
        highest_B1 = torch.nextafter(self.logits_BK.amax(1, keepdim=True), torch.tensor(torch.inf))
        return replace(self, logits_BK=self.logits_BK.scatter(1, predicted_B[:, None], highest_B1))

    def __getitem__(self, rows: Tensor) -> "Observation":
        return self._with_each(lambda values: values[rows])

    def __len__(self) -> int:
        return len(self.logits_BK)

    def mean_of_views(self, views: int) -> "Observation":
        """Average the views of each image; the images of one view stand together, [views * B]."""
        return self._with_each(lambda values: values.unflatten(0, (views, -1)).mean(0))

    def finite(self) -> Tensor:
        """Tell for each image whether all that was seen of it is finite, [B]."""
        everything = [*self._tensors().values(), *self.watched.values()]
        return torch.stack([values.reshape(len(self), -1).isfinite().all(1) for values in everything]).all(0)

    @classmethod
    def joined(cls, pieces: Iterable["Observation"], images: int) -> "Observation":
        """Join pieces of `images` images in all, at least one piece, in order.

        Room for all is made at once. Small tensors of each piece that outlive the large ones of its pass would break up
        the memory between them, which then grows with every pass.
        """
        rest = iter(pieces)
        piece = next(rest)
        whole = piece._with_each(lambda values: values.new_empty((images, *values.shape[1:])))
        whole._put(0, piece)
        first = len(piece)
        for piece in rest:
            whole._put(first, piece)
            first += len(piece)
        return whole

    def _put(self, first: int, piece: "Observation") -> None:
        """Copy a piece into the rows from `first` on."""
        own, given = ({**one._tensors(), **one.watched} for one in (self, piece))
        for name, values in given.items():
            own[name][first : first + len(piece)] = values


@dataclass(frozen=True)
class ClassSplit:
    """Images seen by classifier 1, which was trained on a part of the known classes; the others play unknown."""

    training: Observation
    """All training images."""
    unknown_B: Tensor
    """Whether a training image belongs to a class that classifier 1 does not know."""
    held_out: Observation
    """Images of classes that classifier 1 knows, none of which it was trained on."""


@dataclass(frozen=True)
class Known:
    """Material for fitting: images of known classes that the classifier was not trained on."""

    observation: Observation
    labels_B: Tensor
    """Indices into the classifier's classes."""
    head: Head | None = None
    """The layer that makes the logits from the features; None where there is none."""
    split: "Callable[[TransferSettings], ClassSplit] | None" = None
    """Splits the classes and trains (or loads) classifier 1, for the detectors that learn from it."""

    def last_layer(self) -> Head:
        """Return the head. Raises ClassifierError where there is none."""
        if self.head is None:
            raise ClassifierError(NO_HEAD)
        return self.head
