"""What the same network does on the same images: the contenders of a benchmark, in CONTENDERS."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradosr.classifier import build_classifier
from gradosr.conformance import move
from gradosr.errors import ConfigError, first_line
from gradosr.gradients import GradientEngine, objective
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


Contender = Callable[[GradientEngine, Tensor], Prepared]
"""Of an engine, whose classifier every contender shares, and the batch."""


def workload(arch: str, size: int, batch: int, place: torch.device) -> tuple[GradientEngine, Tensor]:
    """An engine on the classifier of ten classes, and images [batch, 3, size, size]; the same at every call.

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
    return GradientEngine(classifier), images_BCHW


def forward(engine: GradientEngine, images_BCHW: Tensor) -> Prepared:
    """Logits alone."""

    def work() -> None:
        with torch.no_grad():
            engine.classifier(images_BCHW)

    return Prepared(work, images_BCHW)


def training_step(engine: GradientEngine, images_BCHW: Tensor) -> Prepared:
    """Forward and full backward into .grad, as training does it; eval mode like everything else here."""

    def work() -> None:
        _backward(engine.classifier, images_BCHW)
        engine.classifier.zero_grad()

    return Prepared(work, images_BCHW)


def ours(engine: GradientEngine, images_BCHW: Tensor) -> Prepared:
    """The engine, its plan made."""
    engine.plan(images_BCHW)
    return Prepared(lambda: engine(images_BCHW, ["all_hot"]), images_BCHW)


def loop(engine: GradientEngine, images_BCHW: Tensor) -> Prepared:
    """One image after the other, and the norms read off .grad."""

    def work() -> None:
        for image_CHW in images_BCHW[:PART]:
            _backward(engine.classifier, image_CHW[None])
            gradients = [parameter.grad for parameter in engine.classifier.parameters()]
            [float(gradient.pow(2).sum()) for gradient in gradients if gradient is not None]
            del gradients
            engine.classifier.zero_grad()

    return Prepared(work, images_BCHW[:PART])


def vmap(engine: GradientEngine, images_BCHW: Tensor) -> Prepared:
    """Per-sample gradients by torch.func, all of a chunk in memory at once, then their norms.

    Raises MemoryError where those of one image are beyond VMAP_BYTES.
    """
    classifier = engine.classifier
    parameters = {name: parameter.detach() for name, parameter in classifier.named_parameters()}
    each = sum(parameter.nbytes for parameter in parameters.values())
    if each > VMAP_BYTES:
        raise MemoryError(f"the gradients of one image take {each / 1e9:.1f} GB")
    chunk_BCHW = images_BCHW[: min(PART, VMAP_BYTES // each)]

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
