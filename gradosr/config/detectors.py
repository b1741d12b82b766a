"""Unknown detectors: their settings, and the tables that list them.

A detector is one file below gradosr/detectors and one line of a table here. The line says where its class is, so that a
config is checked without importing torch, which the class needs.
"""

from abc import abstractmethod
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import Field, PositiveFloat, PositiveInt

from gradosr.config.settings import Settings
from gradosr.config.uris import Uri

ObjectiveName = str
"""all_hot, all_zero, n_hot:N, predicted, uniform or max_logit; see gradosr.gradients.objectives."""


class Signals(Settings):
    """Signals that a detector needs from the pass through the classifier."""

    objectives: tuple[ObjectiveName, ...] = ()
    """Objectives, backpropagated in this order, one backward pass each; none: a forward pass alone."""
    watched: tuple[str, ...] = ()
    """Further representations, keys of gradosr.representations.REPRESENTATIONS."""
    layers: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the classifier's parameter tensors, counted from the last, whose gradient norms are seen.

    The backward passes end at the first of them.
    """
    mirror: bool = False
    """Whether each image is seen together with its mirror image, which takes twice the time.

    Logits, features and log-norms are then the mean of the two.
    """

    @property
    def passes(self) -> float:
        """Cost of an image in passes through the classifier: views x (1 + share of backward).

        Each view takes a forward pass, and for each objective a backward pass, which counts as one more pass for the
        share of the parameter tensors that it reaches. That is a measure by which detectors are compared, not a time:
        layers differ in cost, and the norms come on top.
        """
        return round((2 if self.mirror else 1) * (1 + len(self.objectives) * self.layers), 6)


class DetectorSettings(Settings):
    """Settings of an unknown detector."""

    kind: str
    """Name of the detector in a config and in a bundle."""

    @property
    @abstractmethod
    def signals(self) -> Signals:
        """Name the signals that the detector needs."""


class TransferSettings(DetectorSettings):
    """The paper's detector (section 3): trained on a class split with classifier 1, moved to classifier 2.

    Stated by the paper: the split by class, one binary detector of two fully connected layers, the
    confounding-label objective. Everything else below is our choice, where the paper is silent.
    """

    kind: Literal["transfer"] = "transfer"
    """Kind of detector: the paper's, which needs a classifier trained on a part of the classes."""
    objectives: Annotated[tuple[ObjectiveName, ...], Field(min_length=1)] = ("all_hot",)
    """Objectives, one backward pass each."""
    pseudo_unknown: PositiveInt | tuple[str, ...] | None = None
    """Known classes played as unknown: names, or how many (drawn by seed); none takes a third."""
    weights: Uri | None = None
    """Weights of classifier 1, its logits in the order of `classes` without the pseudo-unknown; none trains it."""
    hidden: PositiveInt = 64
    """Width of the first of the two fully connected layers (ours)."""
    epochs: PositiveInt = 30
    """Passes over the training images."""
    learning_rate: PositiveFloat = 1e-3
    """Learning rate of AdamW (ours)."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    """Weight decay of AdamW; strong, because the low-variance directions do not move between classifiers (ours)."""
    batch_size: PositiveInt = 256
    """Images per step of the detector's training."""
    seed: int = 0
    """Seed that draws the class split and initialises the detector."""
    mirror: bool = False
    """Whether each image's mirror image is seen too, which takes twice the time."""

    @property
    def signals(self) -> Signals:
        return Signals(objectives=self.objectives, mirror=self.mirror)


class OneClassWeights(Settings):
    """Weights of the parts of the one_class detector's score; 0 leaves a part out."""

    max_logit: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the negative largest logit."""
    gradients: Annotated[float, Field(ge=0)] = 0.3
    """Weight of the norms of the gradients."""
    scale: Annotated[float, Field(ge=0)] = 0.2
    """Weight of the energy of logits from scaled features (SCALE)."""
    middle: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the distance in activations of the middle of the classifier."""
    beyond: Annotated[float, Field(ge=0)] = 0.6
    """Weight of how far that distance lies beyond 2.5 deviations, where few known images lie."""


class OneClassSettings(DetectorSettings):
    """A detector for a classifier trained elsewhere, fitted on known images alone."""

    kind: Literal["one_class"] = "one_class"
    """Kind of detector: the default, fitted to known images alone."""
    objectives: Annotated[tuple[ObjectiveName, ...], Field(min_length=1)] = ("predicted",)
    """Objectives, one backward pass each."""
    layers: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of the parameter tensors, counted from the last, whose gradient norms are seen, at least two; fewer take
    less time."""
    weights: OneClassWeights = OneClassWeights()
    """Weights of the parts of the score."""
    mirror: bool = True
    """Whether each image's mirror image is seen too, which takes twice the time."""

    @property
    def signals(self) -> Signals:
        return Signals(objectives=self.objectives, layers=self.layers, mirror=self.mirror)


class Configured(NamedTuple):
    """A detector with settings of its own."""

    place: str
    """Its class, as MODULE:CLASS below gradosr.detectors."""
    settings: type[DetectorSettings]


class Baseline(NamedTuple):
    """A detector that has nothing to set."""

    place: str
    """Its class, as MODULE:CLASS below gradosr.detectors."""
    signals: Signals = Signals()


CONFIGURED = {
    "one_class": Configured("one_class:OneClassDetector", OneClassSettings),
    "transfer": Configured("transfer:TransferDetector", TransferSettings),
}
"""Detectors with settings of their own, by kind."""

BASELINES = {
    "msp": Baseline("baselines.logits:MaxSoftmax"),
    "max_logit": Baseline("baselines.logits:MaxLogit"),
    "energy": Baseline("baselines.logits:Energy"),
    "gen": Baseline("baselines.logits:Gen"),
    "scale": Baseline("baselines.scale:Scale"),
    "knn": Baseline("baselines.distances:Knn"),
    "vim": Baseline("baselines.distances:Vim"),
    "openmax": Baseline("baselines.openmax:OpenMax"),
    "mahalanobis": Baseline("baselines.distances:Mahalanobis"),
    "rmd": Baseline("baselines.distances:RelativeMahalanobis"),
    "gradnorm": Baseline("baselines.gradients:GradNorm"),
    "gradient_sum": Baseline("baselines.gradients:GradientSum", Signals(objectives=("all_hot",))),
    "negative_gradient_sum": Baseline("baselines.gradients:NegativeGradientSum", Signals(objectives=("all_hot",))),
    "gaia_z": Baseline("baselines.gradients:GaiaZ", Signals(objectives=("max_logit",), watched=("gaia_z",))),
    "gaia_a": Baseline("baselines.gradients:GaiaA", Signals(objectives=("uniform",), watched=("gaia_a",))),
}
"""Published detectors, by kind."""

DETECTORS: dict[str, Configured | Baseline] = {**CONFIGURED, **BASELINES}
"""All detectors that a fit job can ask for, by kind."""
PLACES = {kind: line.place for kind, line in DETECTORS.items()} | {"learned": "learned:LearnedDetector"}
"""The class of every detector that a bundle can hold, as MODULE:CLASS below gradosr.detectors, by kind."""

if TYPE_CHECKING:
    BaselineKind = str
else:
    BaselineKind = Literal[tuple(BASELINES)]


class BaselineSettings(DetectorSettings):
    """A published detector, to measure others against, or to use where it is the best."""

    kind: BaselineKind
    """Kind of detector: a published one, by name."""
    mirror: bool = False
    """Whether each image's mirror image is seen too, which takes twice the time."""

    @property
    def signals(self) -> Signals:
        return BASELINES[self.kind].signals.model_copy(update={"mirror": self.mirror})


if TYPE_CHECKING:
    Detector = DetectorSettings
else:
    # The order in which an error lists the valid kinds: reversed, for it is older than the table.
    _SETTINGS = [*(line.settings for line in reversed(CONFIGURED.values())), BaselineSettings]
    Detector = Annotated[reduce(or_, _SETTINGS), Field(discriminator="kind")]
