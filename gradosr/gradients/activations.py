"""A forward pass whose features and middle activations keep their graph, for gradients towards them.

Legend: B batch, K classes, F features, M middle channels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradosr.gradients.calls import Rule, channel_sums
from gradosr.gradients.capture import Capture, only_requiring_grad
from gradosr.gradients.engine import GradientEngine
from gradosr.gradients.passes import batch_first, forward
from gradosr.gradients.plan import Plan


@dataclass(frozen=True)
class Activations:
    """The stations of a forward pass, with their graph."""

    logits_BK: Tensor
    features_BF: Tensor | None
    middle_BM: Tensor | None
    """Middle activations, mean over positions."""
    middle: Tensor | None
    """Middle activations as they were, the input of the middle layer."""


def activations(engine: GradientEngine, images_BCHW: Tensor) -> Activations:
    """Pass normalised images through an engine's classifier; its parameters take no gradient."""
    seen = _Seen(engine.plan(images_BCHW), len(images_BCHW))
    images_BCHW = images_BCHW.detach().clone().requires_grad_()
    with torch.enable_grad(), only_requiring_grad(engine.classifier), seen:
        logits_BK = forward(engine.classifier, images_BCHW)
    return Activations(logits_BK, seen.features_BF, seen.middle_BM, seen.middle)


class _Seen(Capture):
    """The inputs of the last and of the middle layer, found by the numbers that the engine's plan has for them."""

    def __init__(self, plan: Plan, batch: int) -> None:
        super().__init__()
        self._plan, self._batch = plan, batch
        self.features_BF: Tensor | None = None
        self.middle_BM: Tensor | None = None
        self.middle: Tensor | None = None

    def see(
        self, number: int, rule: Rule, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run the call and return its output."""
        use = self._plan.uses.get(number)
        if number == self._plan.penultimate:
            self.features_BF = args[0]
        if number == self._plan.middle and use is not None:
            call = rule.bind(*(args[1::-1] if use.swapped else args), **kwargs)
            if call is not None:
                x = batch_first(call.x, call.feature_dims, use.before, self._batch)
                self.middle_BM, self.middle = channel_sums(x, 2) / x[0, :, 0].numel(), call.x
        return func(*args, **kwargs)
