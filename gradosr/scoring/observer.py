"""A classifier with the signals that a detector asks of it.

B batch, C coordinates of the representation (objectives * parameter tensors).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradosr.classifier.build import check_logits, input_size, normalise
from gradosr.config import Precision, Signals, TransformSettings
from gradosr.detectors import Observation
from gradosr.errors import ClassifierError, GradosrError, first_line
from gradosr.gradients import GradientEngine, Head, lay_channels_last
from gradosr.gradients.explain import Explained
from gradosr.representations import REPRESENTATIONS, coordinate_names, log_norms, representation
from gradosr.scoring.compute import use_precision


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
