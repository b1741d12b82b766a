"""Unknown detectors, and what each asks of the pass through the classifier."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from gradosr.config.settings import Settings
from gradosr.config.uris import Uri

ObjectiveName = str
"""all_hot, all_zero, n_hot:N, predicted, uniform or max_logit; see gradosr.gradients.objectives."""


class Signals(Settings):
    """What a detector asks of the pass through the classifier."""

    objectives: tuple[ObjectiveName, ...] = ()
    """Backpropagated in this order, one backward pass each; none: a forward pass alone."""
    watched: tuple[str, ...] = ()
    """Further representations, of gradosr.representations.REPRESENTATIONS."""
    mirror: bool = False
    """See each image and its mirror image, and take the mean of logits, features and log-norms: twice the time."""


class TransferSettings(Settings):
    """The paper's detector (section 3): trained on a class split with classifier 1, moved to classifier 2.

    Stated by the paper: the split by class, one binary detector of two fully connected layers, the
    confounding-label objective. Everything else below is our choice, where the paper is silent.
    """

    kind: Literal["transfer"] = "transfer"
    objectives: tuple[ObjectiveName, ...] = ("all_hot",)
    """One backward pass each."""
    pseudo_unknown: PositiveInt | tuple[str, ...] | None = None
    """Known classes played as unknown: names, or how many (drawn by seed); none takes a third."""
    weights: Uri | None = None
    """Of classifier 1, its logits in the order of `classes` without the pseudo-unknown; none trains it by `train`."""
    hidden: PositiveInt = 64
    """Width of the first of the two fully connected layers (ours)."""
    epochs: PositiveInt = 30
    learning_rate: PositiveFloat = 1e-3
    """Adam's (ours)."""
    weight_decay: float = Field(1e-2, ge=0)
    """AdamW's; strong, because the low-variance directions do not move between classifiers (ours)."""
    batch_size: PositiveInt = 256
    seed: int = 0
    """Draws the class split and initialises the detector."""
    mirror: bool = False
    """See each image's mirror image too: twice the time."""

    @property
    def signals(self) -> Signals:
        """What it asks of the pass."""
        return Signals(objectives=self.objectives, mirror=self.mirror)


class OneClassWeights(Settings):
    """Of the parts of the one_class detector's score; 0 leaves one out."""

    max_logit: Annotated[float, Field(ge=0)] = 1.0
    gradients: Annotated[float, Field(ge=0)] = 0.3
    scale: Annotated[float, Field(ge=0)] = 0.2
    middle: Annotated[float, Field(ge=0)] = 0.1
    beyond: Annotated[float, Field(ge=0)] = 0.6


class OneClassSettings(Settings):
    """A detector for a classifier trained elsewhere, fitted on known images alone."""

    kind: Literal["one_class"] = "one_class"
    objectives: tuple[ObjectiveName, ...] = ("predicted", "max_logit")
    """One backward pass each."""
    weights: OneClassWeights = OneClassWeights()
    mirror: bool = True
    """See each image's mirror image too: twice the time."""

    @property
    def signals(self) -> Signals:
        """What it asks of the pass."""
        return Signals(objectives=self.objectives, mirror=self.mirror)


BASELINE_SIGNALS = {
    "msp": Signals(),
    "max_logit": Signals(),
    "energy": Signals(),
    "gen": Signals(),
    "scale": Signals(),
    "knn": Signals(),
    "vim": Signals(),
    "openmax": Signals(),
    "mahalanobis": Signals(),
    "rmd": Signals(),
    "gradnorm": Signals(),
    "gradient_sum": Signals(objectives=("all_hot",)),
    "negative_gradient_sum": Signals(objectives=("all_hot",)),
    "gaia_z": Signals(objectives=("max_logit",), watched=("gaia_z",)),
    "gaia_a": Signals(objectives=("uniform",), watched=("gaia_a",)),
}
"""What each baseline asks of the pass; see gradosr.detectors.baselines."""


class BaselineSettings(Settings):
    """A published detector, to measure others against, or to use where it is the best."""

    kind: Literal[
        "msp",
        "max_logit",
        "energy",
        "gen",
        "scale",
        "knn",
        "vim",
        "openmax",
        "mahalanobis",
        "rmd",
        "gradnorm",
        "gradient_sum",
        "negative_gradient_sum",
        "gaia_z",
        "gaia_a",
    ]
    mirror: bool = False
    """See each image's mirror image too: twice the time."""

    @property
    def signals(self) -> Signals:
        """What it asks of the pass."""
        return BASELINE_SIGNALS[self.kind].model_copy(update={"mirror": self.mirror})


Detector = Annotated[TransferSettings | OneClassSettings | BaselineSettings, Field(discriminator="kind")]
