"""A classifier together with the signals that a detector needs from it.

B batch, C coordinates of the representation (objectives * parameter tensors).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradosr.classifier.build import check_logits, input_size, normalise
from gradosr.config import Signals, TransformSettings
from gradosr.detectors import Observation
from gradosr.errors import ClassifierError, GradosrError, first_line, machine_fault
from gradosr.gradients import GradientEngine, Head, count_last, lay_channels_last
from gradosr.gradients.explain import Explained
from gradosr.representations import REPRESENTATIONS, coordinate_names, log_norms, representation
from gradosr.scoring.compute import Compute


def _batch_norms(classifier: nn.Module) -> list[tuple[nn.Module, dict[str, Tensor]]]:
    """Return every BatchNorm with a copy of its float32 state, which stays float32 in a bfloat16 classifier.

    Autocast does the same. In bfloat16, the statistics would be rounded before the weight derived from them, which
    moves norms a fifth further from the exact ones (resnet18 and resnet50).
    """
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    modules = [module for module in classifier.modules() if isinstance(module, kinds)]
    return [(one, {name: tensor.clone() for name, tensor in one.state_dict().items()}) for one in modules]


@dataclass(frozen=True)
class Observed:
    """One batch after its pass through the classifier, with tensors on its device."""

    observation: Observation
    representation_BC: Tensor
    """The squared norms themselves; with several views, their mean."""
    head: Head | None


class Observer:
    """A classifier with the objectives that make up its representation."""

    def __init__(
        self,
        classifier: nn.Module,
        transform: TransformSettings,
        signals: Signals,
        compute: Compute,
        *,
        every_norm: bool = False,
    ) -> None:
        """Move a classifier to a device, ready for the `signals` that a detector asks for.

        With `every_norm`, the representation has the norms of all layers, even if the detector needs fewer.
        """
        self.compute = compute
        compute.prepare()
        classifier = classifier.to(compute.device)
        if compute.dtype != torch.float32:  # in float32, mixed types are reported, not converted
            statistics = _batch_norms(classifier)
            classifier = classifier.to(compute.dtype)
            for module, state in statistics:
                module.float().load_state_dict(state)
        lay_channels_last(classifier)
        layers = 1.0 if every_norm else signals.layers
        self.engine = GradientEngine(classifier, layers=layers, max_memory=compute.max_memory)
        self._seen = count_last(signals.layers, len(list(classifier.parameters())))
        self.transform, self.signals = transform, signals
        self._watchers = [REPRESENTATIONS[name] for name in signals.watched]
        self.coordinates = coordinate_names(signals.objectives, self.engine.names)

    def check(self, classes: int) -> Observed:
        """Pass one blank image through everything. Raises ClassifierError if the classifier is not usable."""
        blank = torch.zeros(1, 3, *input_size(self.transform), dtype=torch.uint8)
        try:
            observed = self(blank)
        except GradosrError:
            raise
        except Exception as error:  # a classifier may raise anything on images it was not made for
            if fault := machine_fault(error):
                raise fault from error
            size = "x".join(map(str, input_size(self.transform)))
            raise ClassifierError(
                f"the classifier fails on a {size} image, as classifier.transform makes them: {first_line(error)}"
            ) from error
        check_logits(observed.observation.logits_BK, classes)
        return observed

    def __call__(self, images_BCHW: Tensor) -> Observed:
        """Observe uint8 pixels [B, 3, H, W] at the classifier's input size."""
        pixels_BCHW = self.normalised(images_BCHW)
        views = [pixels_BCHW, pixels_BCHW.flip(3)] if self.signals.mirror else [pixels_BCHW]
        norms = self.engine(torch.cat(views), self.signals.objectives, self._watchers)
        features, middle = norms[0].features_BF, norms[0].middle_BM
        observation = Observation(
            log_norms([one.last(self._seen) for one in norms]),
            norms[0].logits_BK.float(),
            None if features is None else features.float(),
            None if middle is None else middle.float(),
            {name: values.float() for one in norms for name, values in one.watched.items()},
        )
        representation_BC = representation(norms).unflatten(0, (len(views), -1)).mean(0)
        return Observed(observation.mean_of_views(len(views)), representation_BC, norms[0].head)

    def explain(self, images_BCHW: Tensor) -> list[Explained]:
        """Explain how the norm of each parameter is computed for uint8 pixels, given as in `__call__`."""
        return self.engine.explain(self.normalised(images_BCHW))

    def normalised(self, images_BCHW: Tensor) -> Tensor:
        """Turn uint8 pixels into the classifier's input, on its device."""
        images_BCHW = images_BCHW.to(self.compute.device, non_blocking=True)
        return normalise(images_BCHW, self.transform).to(self.compute.dtype)
