"""Images to scores: no Ray, no I/O.

B batch, K classes, C coordinates of the representation (objectives * parameter tensors), F features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gradosr.bundle import Bundle
from gradosr.classifier import check_logits, input_size, normalise
from gradosr.config import Precision, Signals, TransformSettings
from gradosr.detectors import Observation, restore
from gradosr.errors import ClassifierError, ConfigError, GradosrError, first_line
from gradosr.gradients import GradientEngine, Head, lay_channels_last
from gradosr.gradients.explain import Explained
from gradosr.representations import REPRESENTATIONS, coordinate_names, log_norms, representation

Floats = NDArray[np.float32]


def pick_device(wanted: str) -> torch.device:
    """Auto takes CUDA where there is one. Raises ConfigError when CUDA is asked for in vain."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: cuda, but torch finds no CUDA device here; use device: auto or cpu")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def use_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """The type to compute in; TF32 is switched for the whole process. Raises ConfigError for it without CUDA."""
    if precision == "tf32" and device.type != "cuda":
        raise ConfigError("precision: tf32, which only CUDA devices have; use precision: float32 or bfloat16")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False  # sums stay in float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def _batch_norms(classifier: nn.Module) -> list[tuple[nn.Module, dict[str, Tensor]]]:
    """Every BatchNorm with its float32 state, which it keeps in a classifier of bfloat16: as autocast keeps it.

    In bfloat16 statistics would be rounded before the weight that is made of them is: norms would be a fifth further
    from the exact ones (resnet18 and resnet50).
    """
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    modules = [module for module in classifier.modules() if isinstance(module, kinds)]
    return [(one, {name: tensor.clone() for name, tensor in one.state_dict().items()}) for one in modules]


@dataclass(frozen=True)
class Observed:
    """One batch, after the pass through the classifier; tensors on its device."""

    observation: Observation
    representation_BC: Tensor
    """The squared norms themselves; of several views, their mean."""
    head: Head | None


class Observer:
    """A classifier with the objectives that make its representation."""

    def __init__(
        self,
        classifier: nn.Module,
        transform: TransformSettings,
        signals: Signals,
        device: torch.device,
        precision: Precision = "float32",
        max_memory: float | None = None,
    ) -> None:
        """`signals`: what the detector asks for; `max_memory` in GiB.

        Raises ConfigError for a precision that the device does not have.
        """
        self.device, self._dtype = device, use_precision(precision, device)
        limit = None if max_memory is None else int(max_memory * 2**30)
        classifier = classifier.to(device)
        if self._dtype != torch.float32:  # a classifier of mixed types is told as such, not made to fit
            statistics = _batch_norms(classifier)
            classifier = classifier.to(self._dtype)
            for module, state in statistics:
                module.float().load_state_dict(state)
        lay_channels_last(classifier)
        self.engine = GradientEngine(classifier, max_memory=limit)
        self.transform, self.signals = transform, signals
        self._watchers = [REPRESENTATIONS[name] for name in signals.watched]
        self.coordinates = coordinate_names(signals.objectives, self.engine.names)

    def check(self, classes: int) -> Observed:
        """One blank image through everything. Raises ClassifierError when the classifier cannot serve."""
        blank = torch.zeros(1, 3, *input_size(self.transform), dtype=torch.uint8)
        try:
            observed = self(blank)
        except GradosrError:
            raise
        except Exception as error:  # whatever a classifier says to images it was not made for
            size = "x".join(map(str, input_size(self.transform)))
            raise ClassifierError(
                f"the classifier fails on a {size} image, as classifier.transform makes them: {first_line(error)}"
            ) from error
        check_logits(observed.observation.logits_BK, classes)
        return observed

    def __call__(self, images_BCHW: Tensor) -> Observed:
        """uint8 pixels [B, 3, H, W] at the classifier's input size."""
        pixels_BCHW = self._normalised(images_BCHW)
        views = [pixels_BCHW, pixels_BCHW.flip(3)] if self.signals.mirror else [pixels_BCHW]
        norms = self.engine(torch.cat(views), self.signals.objectives, self._watchers)
        features, middle = norms[0].features_BF, norms[0].middle_BM
        observation = Observation(
            log_norms(norms),
            norms[0].logits_BK.float(),
            None if features is None else features.float(),
            None if middle is None else middle.float(),
            {name: values.float() for one in norms for name, values in one.watched.items()},
        )
        representation_BC = representation(norms).unflatten(0, (len(views), -1)).mean(0)
        return Observed(observation.mean_of_views(len(views)), representation_BC, norms[0].head)

    def explain(self, images_BCHW: Tensor) -> list[Explained]:
        """How each parameter gets its norm, for uint8 pixels as above."""
        return self.engine.explain(self._normalised(images_BCHW))

    def _normalised(self, images_BCHW: Tensor) -> Tensor:
        return normalise(images_BCHW.to(self.device, non_blocking=True), self.transform).to(self._dtype)


@dataclass(frozen=True)
class Scores:
    """One row per image, as in the result schema; on the CPU."""

    finite: NDArray[np.bool_]
    """False: a logit or a norm is not a finite number; unknown_score and p_value are nan, is_unknown is False."""
    predicted_index: NDArray[np.int32]
    confidence: Floats
    """Highest softmax probability."""
    max_logit: Floats
    energy: Floats
    """-logsumexp of the logits (Liu et al., NeurIPS 2020); higher = more unknown."""
    unknown_score: Floats
    """Higher = more unknown."""
    p_value: Floats
    """Split-conformal; small = unlike the known."""
    is_unknown: NDArray[np.bool_]
    representation_BC: Floats
    features_BF: NDArray[np.float16] | None


class Scorer:
    """A bundle on a device: batches of images in, arrays out.

        scorer = Scorer(load_bundle(Store(), "s3://models/animals-v3/"))
        scores = scorer.score(images_BCHW)

    `gradosr.images` makes such images of encoded bytes (`decode`, `to_input_size`).
    """

    def __init__(
        self, bundle: Bundle, device: str = "auto", precision: Precision = "float32", max_memory: float | None = None
    ) -> None:
        """Device, precision and max_memory (GiB) as in ScoreJob; the bundle's classifier is moved, not copied."""
        self.bundle = bundle
        manifest = bundle.manifest
        self.observer = Observer(
            bundle.classifier, manifest.transform, manifest, pick_device(device), precision, max_memory
        )
        arrays = {name: array.to(self.observer.device) for name, array in bundle.detector.arrays().items()}
        self._detector = restore(manifest.detector, arrays)
        checked = self.observer.check(len(manifest.classes))
        features = checked.observation.features_BF
        self.feature_count = 0 if features is None else features.shape[1]

    def score(self, images_BCHW: Tensor) -> Scores:
        """Scores of uint8 images [B, 3, H, W] at the classifier's input size; B may be 0."""
        return self.start(images_BCHW).wait()

    def start(self, images_BCHW: Tensor) -> "Pending":
        """The same, without waiting for the device: it works on while the caller prepares the next batch."""
        observed = self.observer(images_BCHW)
        logits_BK, features_BF = observed.observation.logits_BK, observed.observation.features_BF
        unknown_score_B = self._detector.score(observed.observation).float()
        confidence_B, predicted_B = logits_BK.softmax(1).max(1)
        columns = [
            (logits_BK.isfinite().all(1) & unknown_score_B.isfinite())[:, None],
            predicted_B[:, None],  # exact in float32 up to 16,777,216 classes
            confidence_B[:, None],
            logits_BK.amax(1, keepdim=True),
            -logits_BK.logsumexp(1, keepdim=True),
            unknown_score_B[:, None],
            observed.representation_BC,
            *([] if features_BF is None else [features_BF]),
        ]
        together_BV = torch.cat([column.float() for column in columns], 1)
        widths = [column.shape[1] for column in columns[6:]]
        if together_BV.is_cuda:
            values_BV = torch.empty(together_BV.shape, pin_memory=True).copy_(together_BV, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
            return Pending(values_BV, widths, self.bundle, copied)
        return Pending(together_BV, widths, self.bundle)


@dataclass(frozen=True)
class Pending:
    """A batch that was given to the device; its scores come back in one copy."""

    values_BV: Tensor
    """Side by side: finite, predicted, confidence, max logit, energy, unknown score; representation, features."""
    widths: Sequence[int]
    """Columns of the representation, and of the features where there are any."""
    bundle: Bundle
    copied: torch.cuda.Event | None = None

    def wait(self) -> Scores:
        """The scores, once they are there."""
        if self.copied is not None:
            self.copied.synchronize()
        first_B6, representation_BC, *features = self.values_BV.split([6, *self.widths], 1)
        finite, predicted, confidence, max_logit, energy, unknown_score = first_B6.T.contiguous().numpy()
        finite = finite != 0
        unknown_score = np.where(finite, unknown_score, np.float32(np.nan))
        p_value = self.bundle.calibration.p_values(unknown_score)
        return Scores(
            finite=finite,
            predicted_index=predicted.astype(np.int32),
            confidence=confidence,
            max_logit=max_logit,
            energy=energy,
            unknown_score=unknown_score,
            p_value=p_value,
            is_unknown=p_value <= self.bundle.manifest.false_alarm_rate,
            representation_BC=representation_BC.numpy(),
            features_BF=features[0].half().numpy() if features else None,
        )
