"""What the same network does on the same images: the contenders of a benchmark, in CONTENDERS."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradosr.classifier import build_classifier
from gradosr.conformance import move
from gradosr.errors import ConfigError, first_line
from gradosr.gradients import GradientEngine, lay_channels_last, objective
from gradosr.gradients.calls import squared_norm

PART = 8
"""Images that stand for the batch where every one costs the same: the loop, and one chunk of vmap."""
VMAP_BYTES = 2 << 30
"""Bound on the per-sample gradients of a chunk."""


@dataclass(frozen=True)
class Prepared:
    """A contender on its images."""

    work: Callable[[], object]
    images_BCHW: Tensor
    """What it works on; may be a part of the batch."""


@dataclass(frozen=True)
class Workload:
    """A classifier, the engine on it, and the batch."""

    classifier: nn.Module
    """As its library builds it; all contenders but the engine work on it."""
    engine: GradientEngine
    """On a copy laid out as the scorer lays it out."""
    images_BCHW: Tensor


Contender = Callable[[Workload], Prepared]


def workload(arch: str, size: int, batch: int, place: torch.device) -> Workload:
    """A classifier of ten classes and images [batch, 3, size, size]; the same at every call.

    Raises ConfigError for an architecture that does not take the size.
    """
    torch.manual_seed(0)
    classifier = build_classifier(arch, {}, 10)
    move(classifier)
    classifier.to(place)
    images_BCHW = torch.randn(batch, 3, size, size).to(place)
    try:
        with torch.no_grad():
            classifier(images_BCHW[:1])
    except Exception as error:  # whatever an architecture says to a size it was not made for
        raise ConfigError(f"{arch} does not take {size}x{size} pixels: {first_line(error)}") from error
    laid_out = copy.deepcopy(classifier)
    lay_channels_last(laid_out)
    return Workload(classifier, GradientEngine(laid_out), images_BCHW)


def forward(given: Workload) -> Prepared:
    """Logits alone."""

    def work() -> None:
        with torch.no_grad():
            given.classifier(given.images_BCHW)

    return Prepared(work, given.images_BCHW)


def training_step(given: Workload) -> Prepared:
    """Forward and full backward into .grad, as training does it; eval mode like everything else here."""

    def work() -> None:
        _backward(given.classifier, given.images_BCHW)
        given.classifier.zero_grad()

    return Prepared(work, given.images_BCHW)


def ours(given: Workload) -> Prepared:
    """The engine, its plan made."""
    given.engine.plan(given.images_BCHW)
    return Prepared(lambda: given.engine(given.images_BCHW, ["all_hot"]), given.images_BCHW)


def loop(given: Workload) -> Prepared:
    """One image after the other, and the norms read off .grad."""
    part_BCHW = given.images_BCHW[:PART]

    def work() -> None:
        for image_CHW in part_BCHW:
            _backward(given.classifier, image_CHW[None])
            gradients = [parameter.grad for parameter in given.classifier.parameters()]
            [float(gradient.pow(2).sum()) for gradient in gradients if gradient is not None]
            del gradients
            given.classifier.zero_grad()

    return Prepared(work, part_BCHW)


def vmap(given: Workload) -> Prepared:
    """Per-sample gradients by torch.func, all of a chunk in memory at once, then their norms.

    Raises MemoryError where those of one image are beyond VMAP_BYTES.
    """
    classifier = given.classifier
    parameters = {name: parameter.detach() for name, parameter in classifier.named_parameters()}
    each = sum(parameter.nbytes for parameter in parameters.values())
    if each > VMAP_BYTES:
        raise MemoryError(f"the gradients of one image take {each / 1e9:.1f} GB")
    chunk_BCHW = given.images_BCHW[: min(PART, VMAP_BYTES // each)]

    def loss(parameters: dict[str, Tensor], image_CHW: Tensor) -> Tensor:
        logits: Tensor = torch.func.functional_call(classifier, parameters, (image_CHW[None],))
        return objective("all_hot")(logits).sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0), randomness="same")

    def work() -> None:
        [squared_norm(gradient) for gradient in per_sample(parameters, chunk_BCHW).values()]

    return Prepared(work, chunk_BCHW)


def _backward(classifier: nn.Module, images_BCHW: Tensor) -> None:
    classifier.zero_grad()
    objective("all_hot")(classifier(images_BCHW)).sum().backward()


FORWARD, TRAINING_STEP, OURS, LOOP, VMAP = "forward", "training step", "gradosr", "batch-of-one loop", "vmap"
CONTENDERS: dict[str, Contender] = {
    FORWARD: forward,
    TRAINING_STEP: training_step,
    OURS: ours,
    LOOP: loop,
    VMAP: vmap,
}
