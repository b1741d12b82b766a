"""Squared gradient norms of every parameter tensor for every image: one forward, one backward per objective.

B batch, K classes, P parameter tensors, F penultimate features.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from gradosr.errors import ClassifierError
from gradosr.gradients.calls import squared_norm
from gradosr.gradients.capture import only_requiring_grad
from gradosr.gradients.explain import Explained, TimedForms, explained
from gradosr.gradients.objectives import Objective, objective
from gradosr.gradients.passes import Kept, Pass, forward
from gradosr.gradients.plan import Plan
from gradosr.gradients.planning import check_mode, make_plan

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SquaredNorms:
    """The representation of a batch under one objective."""

    names: tuple[str, ...]
    """The P named parameters, in named_parameters() order."""
    values_BP: Tensor
    """Squared L2 norm of dJ/dp per image (Lee & AlRegib, Eq. 1)."""
    logits_BK: Tensor
    features_BF: Tensor | None
    """Input of the linear layer that makes the logits; None where no such layer does."""

    def none(self) -> "SquaredNorms":
        """The same of no image."""
        features = None if self.features_BF is None else self.features_BF[:0]
        return replace(self, values_BP=self.values_BP[:0], logits_BK=self.logits_BK[:0], features_BF=features)


def squared_norms(classifier: nn.Module, images_BCHW: Tensor, objective: str = "all_hot") -> SquaredNorms:
    """Squared gradient norms of each parameter tensor, per image, exact, of a classifier in eval mode.

    The slow definition is plain autograd on batches of one. `images_BCHW` are normalised as the
    classifier expects; the classifier is left as it was. For many batches keep a GradientEngine,
    which plans once per input shape. Raises ClassifierError (training mode, logits cut off from the
    parameters, images that influence each other) and ConfigError (unknown objective).
    """
    return GradientEngine(classifier)(images_BCHW, [objective])[0]


class GradientEngine:
    """A classifier and its plans, one per input shape."""

    def __init__(self, classifier: nn.Module) -> None:
        check_mode(classifier)
        self.classifier = classifier
        self.names = tuple(name for name, _ in classifier.named_parameters())
        self._plans: dict[tuple[object, ...], Plan] = {}
        self._kept: dict[int, Kept] = defaultdict(Kept)

    def plan(self, images_BCHW: Tensor) -> Plan:
        """The plan for images of this shape, made at the first call; parameters without a rule are logged by name."""
        key = (*images_BCHW.shape[1:], images_BCHW.dtype, images_BCHW.device)
        if key not in self._plans:
            plan = self._plans[key] = make_plan(self.classifier, images_BCHW)
            if plan.fallback:
                logger.warning(
                    "no rule for %d of %d parameters, exact per-sample fallback (slow): %s",
                    len(plan.fallback), len(self.names), ", ".join(plan.fallback),
                )  # fmt: skip
            if plan.unused:
                logger.info("no gradient reaches %s: zero", ", ".join(plan.unused))
        return self._plans[key]

    def __call__(self, images_BCHW: Tensor, objectives: Sequence[str]) -> list[SquaredNorms]:
        """One SquaredNorms per objective, in order, from one forward pass and one backward pass each."""
        losses = [objective(name) for name in objectives]
        if images_BCHW.dim() != 4 or not images_BCHW.is_floating_point():
            found = f"{tuple(images_BCHW.shape)} of {str(images_BCHW.dtype).removeprefix('torch.')}"
            raise ClassifierError(f"expected floating-point images [B, C, H, W], found {found}")
        if not len(images_BCHW):
            blank = images_BCHW.new_zeros(1, *images_BCHW.shape[1:])
            return [one.none() for one in self(blank, objectives)]
        check_mode(self.classifier)
        with torch.inference_mode(False), torch.enable_grad():
            images_BCHW = images_BCHW.clone() if images_BCHW.is_inference() else images_BCHW.detach()
            plan = self.plan(images_BCHW)
            norms, logits, features = self._ruled(plan, images_BCHW, losses)
            if plan.fallback:
                for ruled, extra in zip(norms, self._fallback(plan, images_BCHW, losses), strict=True):
                    ruled.update(extra)
        zero = logits.new_zeros(images_BCHW.shape[0])
        values = [torch.stack([one.get(name, zero) for name in self.names], 1) for one in norms]
        return [SquaredNorms(self.names, value, logits, features) for value in values]

    def explain(self, images_BCHW: Tensor) -> list[Explained]:
        """How each parameter gets its norm for images of this shape, in order, and what that takes for this batch."""
        self(images_BCHW, ["all_hot"])
        plan = self.plan(images_BCHW)
        kept, losses = self._kept[id(plan)], [objective("all_hot")]
        forms = TimedForms(kept.forms)
        one = Pass(plan, self.classifier, replace(kept, forms=forms))
        with torch.inference_mode(False), torch.enable_grad():
            loss = losses[0](one.forward(images_BCHW)).sum()
            one.backward(loss, last=False)
            one.backward(loss)
            start = time.perf_counter()
            if plan.fallback:
                self._fallback(plan, images_BCHW, losses)
        return explained(plan, self.names, forms, time.perf_counter() - start)

    def _ruled(
        self, plan: Plan, images_BCHW: Tensor, losses: Sequence[Objective]
    ) -> tuple[list[dict[str, Tensor]], Tensor, Tensor | None]:
        one = Pass(plan, self.classifier, self._kept[id(plan)])
        logits = one.forward(images_BCHW)
        last = len(losses) - 1
        norms = [one.backward(loss(logits).sum(), last=i == last) for i, loss in enumerate(losses)]
        return norms, logits.detach(), one.features_BF

    def _fallback(self, plan: Plan, images_BCHW: Tensor, losses: Sequence[Objective]) -> list[dict[str, Tensor]]:
        """Batches of one, for the parameters without a rule alone."""
        parameters = {name: p for name, p in self.classifier.named_parameters() if name in plan.fallback}
        with only_requiring_grad(self.classifier, plan.fallback):
            rows = [self._one_image(image_CHW[None], losses, parameters) for image_CHW in images_BCHW]
        columns = [torch.stack([row[i] for row in rows]) for i in range(len(losses))]
        return [dict(zip(parameters, column_BP.unbind(1), strict=True)) for column_BP in columns]

    def _one_image(
        self, image_1CHW: Tensor, losses: Sequence[Objective], parameters: dict[str, nn.Parameter]
    ) -> list[Tensor]:
        logits = forward(self.classifier, image_1CHW)
        tensors, norms = list(parameters.values()), []
        for loss in losses:
            gradients = torch.autograd.grad(loss(logits).sum(), tensors, retain_graph=True, materialize_grads=True)
            norms.append(torch.cat([squared_norm(gradient.reshape(1, -1)) for gradient in gradients]))
        return norms
