"""Squared gradient norms of every parameter tensor for every image: one forward pass, one backward pass per objective.

Legend: B batch, K classes, P parameter tensors.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from gradosr.errors import ClassifierError
from gradosr.gradients.calls import CHUNK_BYTES, Rule, accumulator, squared_norm
from gradosr.gradients.capture import only_requiring_grad
from gradosr.gradients.explain import Explained, TimedForms, explained
from gradosr.gradients.graphs import Recordings, Work, state_of
from gradosr.gradients.objectives import Objective, objective
from gradosr.gradients.passes import Kept, Pass, forward, is_out_of_memory
from gradosr.gradients.plan import Plan
from gradosr.gradients.planning import check_mode, make_plan
from gradosr.gradients.squared_norms import SquaredNorms, joined
from gradosr.gradients.weights import check_finite, told_of_mixed_precision

logger = logging.getLogger(__name__)


def squared_norms(classifier: nn.Module, images_BCHW: Tensor, objective: str = "all_hot") -> SquaredNorms:
    """Return the exact squared gradient norm of each parameter tensor for each image, for a classifier in eval mode.

    Up to rounding, the results equal those of plain autograd on batches of one. `images_BCHW` must be normalised as the
    classifier expects; the classifier is left unchanged. For many batches, keep a GradientEngine, which plans once per
    input shape. Raise ClassifierError if the classifier is in training mode, if its logits are cut off from its
    parameters, if images influence each other, or if weights are not finite; raise ConfigError for an unknown
    objective.
    """
    return GradientEngine(classifier)(images_BCHW, [objective])[0]


class Watcher(Protocol):
    """An observer of every gradient in one backward pass over one batch, which computes values from them."""

    def watch(self, rule: Rule, parameters: tuple[str, ...], grad: Tensor) -> None:
        """Receive a gradient; gradosr.gradients.Watch describes the arguments."""
        ...

    def coordinates(self, norms: SquaredNorms) -> dict[str, Tensor]:
        """Return the computed values by name, each [B], with the same names for every batch.

        Raise ClassifierError if they cannot be computed.
        """
        ...


def count_last(layers: float, parameters: int) -> int:
    """Return how many of the parameter tensors are the last `layers`, a share; at least two: a weight and a bias."""
    return min(parameters, max(2, round(layers * parameters)))


@dataclass
class _Planned:
    """A plan, and measurements made while running it."""

    plan: Plan
    kept: Kept = field(default_factory=Kept)
    at_once: int = sys.maxsize
    """Largest number of images in one pass."""


def _halve(planned: _Planned, images_BCHW: Tensor) -> None:
    """Halve the number of images per pass after a pass over these images ran out of memory.

    Raise ClassifierError if it was a single image.
    """
    count, shape = len(images_BCHW), "x".join(map(str, images_BCHW.shape[2:]))
    if count == 1:
        raise ClassifierError(f"out of memory on {images_BCHW.device} for a single image of {shape}")
    if images_BCHW.is_cuda:
        torch.cuda.empty_cache()
    if planned.at_once == sys.maxsize:
        logger.warning("out of memory with %d images of %s: going on with half as many at once", count, shape)
    planned.at_once = count // 2


class GradientEngine:
    """A classifier and its plans, one per input shape.

    Weights may change between calls if the change is made in place and is visible to autograd (an optimiser,
    load_state_dict). A change through `.data` goes unnoticed where a BatchNorm is folded into its convolution.
    """

    def __init__(self, classifier: nn.Module, *, layers: float = 1.0, max_memory: int | None = None) -> None:
        """Choose the norms to compute, and set `max_memory`, the bytes a pass may hold besides the weights.

        `layers` is the share of the parameter tensors, counted from the last in named_parameters() order, whose norms
        are computed; the backward passes end at the first of them. Batches that need more memory are split.
        """
        check_mode(classifier)
        self.classifier = classifier
        names = tuple(name for name, _ in classifier.named_parameters())
        self.names = names[len(names) - count_last(layers, len(names)) :]
        self._max_memory = max_memory
        self._planned: dict[tuple[object, ...], _Planned] = {}
        self._recordings = Recordings()

    def plan(self, images_BCHW: Tensor) -> Plan:
        """Return the plan for images of this shape, made at the first call.

        Parameters without a rule are logged by name.
        """
        return self._planned_for(images_BCHW).plan

    def _planned_for(self, images_BCHW: Tensor) -> _Planned:
        key = (*images_BCHW.shape[1:], images_BCHW.dtype, images_BCHW.device)
        if key not in self._planned:
            check_finite(self.classifier)
            plan = self._make_plan(images_BCHW)
            self._planned[key] = planned = _Planned(plan)
            self._announce(plan)
            if self._max_memory is not None and len(images_BCHW):
                per_image = Pass(plan, self.classifier, planned.kept).bytes_of(images_BCHW[:1])
                planned.at_once = max(1, (self._max_memory - CHUNK_BYTES) // max(1, per_image))
        return self._planned[key]

    def _make_plan(self, images_BCHW: Tensor) -> Plan:
        try:
            return make_plan(self.classifier, images_BCHW, self.names)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            shape = "x".join(map(str, images_BCHW.shape[2:]))
            raise ClassifierError(f"out of memory on {images_BCHW.device} for the first images of {shape}") from error

    def _announce(self, plan: Plan) -> None:
        if plan.fallback:
            logger.warning(
                "no rule for %d of %d parameters, exact per-sample fallback (slow): %s",
                len(plan.fallback), len(self.names), ", ".join(plan.fallback),
            )  # fmt: skip
        if plan.unused:
            logger.info("no gradient reaches %s: zero", ", ".join(plan.unused))

    def __call__(
        self, images_BCHW: Tensor, objectives: Sequence[str], watchers: Sequence[Callable[[str], Watcher]] = ()
    ) -> list[SquaredNorms]:
        """Return one SquaredNorms per objective, in order, from one forward pass and one backward pass per objective.

        Without objectives, run only a forward pass and return one SquaredNorms that has no parameters. Each item of
        `watchers` takes an objective's name and returns the observer of its backward pass.
        """
        for name in objectives:
            objective(name)
        if images_BCHW.dim() != 4 or not images_BCHW.is_floating_point():
            found = f"{tuple(images_BCHW.shape)} of {str(images_BCHW.dtype).removeprefix('torch.')}"
            raise ClassifierError(f"expected floating-point images [B, C, H, W], found {found}")
        if not len(images_BCHW):
            blank = images_BCHW.new_zeros(1, *images_BCHW.shape[1:])
            return [one.none() for one in self(blank, objectives, watchers)]
        check_mode(self.classifier)
        mixed = told_of_mixed_precision(self.classifier, images_BCHW)
        with torch.inference_mode(False), torch.enable_grad(), mixed:
            images_BCHW = images_BCHW.clone() if images_BCHW.is_inference() else images_BCHW.detach()
            pieces = list(self._pieces(images_BCHW, objectives, watchers))
        return [joined(parts) for parts in zip(*pieces, strict=True)]

    def _pieces(
        self, images_BCHW: Tensor, objectives: Sequence[str], watchers: Sequence[Callable[[str], Watcher]]
    ) -> Iterator[list[SquaredNorms]]:
        """Yield results for pieces of the batch, each as large as memory allows: normally the whole batch."""
        planned, start = self._planned_for(images_BCHW), 0
        work = partial(self._piece, planned, objectives, watchers)
        while start < len(images_BCHW):
            piece = images_BCHW[start : start + planned.at_once]
            norms: list[SquaredNorms] | None = None
            try:
                norms = self._recorded(planned, (*objectives, *watchers), work, piece)
            except RuntimeError as error:  # includes a device's torch.OutOfMemoryError
                if not is_out_of_memory(error):
                    raise
            if norms is None:  # outside the handler, the failed pass's allocations are released
                _halve(planned, piece)
            else:
                start += len(piece)
                yield norms

    def _recorded(
        self, planned: _Planned, kind: tuple[object, ...], work: Work, images_BCHW: Tensor
    ) -> list[SquaredNorms]:
        """Return the results of `work`; on a GPU by replaying a CUDA graph of it, recorded once its kind came twice."""
        # A loop over samples cannot be recorded, nor can work on a simulated device (of a fake tensor).
        if not images_BCHW.is_cuda or planned.plan.fallback or not torch.cuda.is_initialized():
            return work(images_BCHW)
        kind = (images_BCHW.shape, images_BCHW.dtype, images_BCHW.device, *kind)
        return self._recordings.run(state_of(self.classifier), kind, work, images_BCHW)

    def _piece(
        self,
        planned: _Planned,
        objectives: Sequence[str],
        watchers: Sequence[Callable[[str], Watcher]],
        images_BCHW: Tensor,
    ) -> list[SquaredNorms]:
        with closing(Pass(planned.plan, self.classifier, planned.kept)) as one:
            return self._passed(one, planned, objectives, watchers, images_BCHW)

    def _passed(
        self,
        one: Pass,
        planned: _Planned,
        objectives: Sequence[str],
        watchers: Sequence[Callable[[str], Watcher]],
        images_BCHW: Tensor,
    ) -> list[SquaredNorms]:
        losses = [objective(name) for name in objectives]
        if not losses:
            with torch.no_grad():
                logits = one.forward(images_BCHW)
            none_B0 = logits.new_empty(len(logits), 0)
            return [SquaredNorms((), none_B0, logits, one.features_BF, one.middle_BM, one.head)]
        logits = one.forward(images_BCHW)
        told = [[watcher(name) for watcher in watchers] for name in objectives]
        norms = [
            one.backward(loss(logits).sum(), last=i == len(losses), watches=[watcher.watch for watcher in some])
            for i, (loss, some) in enumerate(zip(losses, told, strict=True), 1)
        ]
        if planned.plan.fallback:
            for ruled, extra in zip(norms, self._fallback(planned.plan, images_BCHW, losses), strict=True):
                ruled.update(extra)
        zero = torch.zeros(len(images_BCHW), device=logits.device, dtype=accumulator(logits.dtype))
        results = []
        for by_name, some in zip(norms, told, strict=True):
            values_BP = torch.stack([by_name.get(name, zero) for name in self.names], 1)
            result = SquaredNorms(self.names, values_BP, logits.detach(), one.features_BF, one.middle_BM, one.head)
            for watcher in some:
                result.watched.update(watcher.coordinates(result))
            results.append(result)
        return results

    def explain(self, images_BCHW: Tensor) -> list[Explained]:
        """Explain how each parameter gets its norm for images of this shape.

        There is one entry per parameter, in order, with the time that this batch took.
        """
        self(images_BCHW, ["all_hot"])
        planned, losses = self._planned_for(images_BCHW), [objective("all_hot")]
        forms = TimedForms(planned.kept.forms)
        one = Pass(planned.plan, self.classifier, replace(planned.kept, forms=forms))
        with torch.inference_mode(False), torch.enable_grad():
            loss = losses[0](one.forward(images_BCHW)).sum()
            one.backward(loss, last=False)
            one.backward(loss)
            start = time.perf_counter()
            if planned.plan.fallback:
                self._fallback(planned.plan, images_BCHW, losses)
        return explained(planned.plan, self.names, forms, time.perf_counter() - start)

    def _fallback(self, plan: Plan, images_BCHW: Tensor, losses: Sequence[Objective]) -> list[dict[str, Tensor]]:
        """Compute norms for the parameters without a rule only, from batches of one."""
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
