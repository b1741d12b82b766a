"""A second network on a device, whose features of some images are stored beside their scores.

S images, F features.
"""

import sys
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gradosr.classifier.build import input_size, normalise
from gradosr.classifier.embedding import Embedding, LastLayer, bring_embedder, in_its_words
from gradosr.config import ScoreJob
from gradosr.errors import ClassifierError, GradosrError, MachineFault, first_line, machine_fault
from gradosr.gradients import lay_channels_last
from gradosr.scoring.compute import Compute
from gradosr.store import Store


class Embedder:
    """A network with weights: uint8 pixels in, one vector of features per image out."""

    def __init__(self, name: str, embedding: Embedding, compute: Compute) -> None:
        """Move a network to the device of the classifier, and pass a blank image through it.

        Raises ClassifierError if it gives no features. In bfloat16 its weights stay float32, and autocast rounds.
        """
        self.name, self.transform, self._compute = name, embedding.transform, compute
        self._network = embedding.network.to(compute.device)
        lay_channels_last(self._network)
        self._last = None if embedding.headless else LastLayer(self._network)
        with in_its_words():
            self.width, per_image = self._tried(torch.zeros(1, 3, *input_size(self.transform), dtype=torch.uint8))
        self._at_once = max(1, (compute.max_memory or sys.maxsize) // max(1, per_image))

    def __call__(self, images: list[Tensor]) -> NDArray[np.float32]:
        """Return the vectors [S, F] of uint8 pixels [3, h, w] at the network's input size.

        So many pass at once as max_memory allows. Raises MachineFault where it does not suffice.
        """
        pieces = [images[start : start + self._at_once] for start in range(0, len(images), self._at_once)]
        try:
            found = [self._vectors(self._compute.stack(piece)).cpu().numpy() for piece in pieces]
        except RuntimeError as error:
            if fault := machine_fault(error):
                raise MachineFault(f"embedder: {fault}") from error
            raise
        return np.concatenate([np.empty((0, self.width), np.float32), *found])

    def _vectors(self, images_SCHW: Tensor) -> Tensor:
        device, halved = self._compute.device, self._compute.precision == "bfloat16"
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=halved):
            output = self._network(normalise(images_SCHW.to(device, non_blocking=True), self.transform))
            if self._last is None:
                return self._checked(output, len(images_SCHW))
            features = self._last.features(output) if isinstance(output, Tensor) else None
            if features is None:
                raise ClassifierError(
                    f"{self.name} has no features: no linear layer makes its output; take another network, or a "
                    "factory of your own that returns them"
                )
            return self._checked(features, len(images_SCHW))

    def _checked(self, output: Any, count: int) -> Tensor:
        if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != count or not output.shape[1]:
            found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ClassifierError(f"{self.name} gives {found}; expected features [{count}, F]")
        return output.float()

    def _tried(self, blank_1CHW: Tensor) -> tuple[int, int]:
        """Return the number of features, and the bytes of all that layers make of an image, of which a part is held."""
        sizes: list[int] = []

        def weigh(_layer: nn.Module, _args: Any, output: Any) -> None:
            sizes.append(output.nbytes if isinstance(output, Tensor) else 0)

        leaves = [one for one in self._network.modules() if not any(True for _ in one.children())]
        hooks = [leaf.register_forward_hook(weigh) for leaf in leaves]
        try:
            return self._vectors(blank_1CHW).shape[1], sum(sizes)
        except GradosrError:
            raise
        except Exception as error:  # a network may raise anything on images that it was not made for
            if fault := machine_fault(error):
                raise fault from error
            size = "x".join(map(str, input_size(self.transform)))
            raise ClassifierError(
                f"{self.name} fails on a {size} image, as embedder.transform makes them: {first_line(error)}"
            ) from error
        finally:
            for hook in hooks:
                hook.remove()


def load_embedder(job: ScoreJob, store: Store, compute: Compute) -> Embedder | None:
    """Load the second network of a job, if it has one. Raises ConfigError, ClassifierError or StoreError."""
    if job.embedder is None:
        return None
    return Embedder(job.embedder.arch, bring_embedder(job.embedder, store, job.trust), compute)
