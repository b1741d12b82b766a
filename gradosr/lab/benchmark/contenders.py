"""The contenders of a benchmark, listed in CONTENDERS: different work with the same network on the same images.

All of them use one classifier, with the types and the memory layout (channels-last) that the scorer gives it, on
channels-last images, and with TF32 on or off as the precision says, in cuBLAS and cuDNN alike. Without this, contenders
would use another layout, and torch would let cuDNN alone use TF32 in what is called float32.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradosr.classifier.build import build_classifier
from gradosr.config import Precision, Signals, TransformSettings
from gradosr.errors import ConfigError, first_line, machine_fault
from gradosr.gradients import GradientEngine, objective
from gradosr.gradients.calls import squared_norm
from gradosr.lab.conformance import move
from gradosr.scoring.compute import Compute
from gradosr.scoring.observer import Observer

PART = 8
"""Images that represent the batch when each costs the same: in the loop, and in one chunk of vmap on a CPU."""
GPU_PART = 32
"""Images in one chunk of vmap on a GPU, which a smaller chunk would leave idle."""
VMAP_BYTES = 2 << 30
"""Largest total size of the per-sample gradients of a chunk, in bytes."""


@dataclass(frozen=True)
class Prepared:
    """A contender, ready to run on its images."""

    work: Callable[[], object]
    images_BCHW: Tensor
    """Images that the contender processes; possibly a part of the batch."""


@dataclass(frozen=True)
class Workload:
    """A classifier, the engine on it, and the batch."""

    classifier: nn.Module
    """The classifier, in eval mode."""
    engine: GradientEngine
    """The engine on the same classifier."""
    images_BCHW: Tensor
    """The batch, channels-last."""


Contender = Callable[[Workload], Prepared]


def workload(
    arch: str, size: int, batch: int, place: torch.device, precision: Precision = "float32", classes: int = 10
) -> Workload:
    """Return a classifier and images [batch, 3, size, size], identical at every call; set TF32 for the whole process.

    Raise ConfigError if the architecture does not accept the size, or the device does not support the precision.
    """
    torch.manual_seed(0)
    classifier = build_classifier(arch, {}, classes)
    move(classifier)
    given = _scorers(classifier, torch.randn(batch, 3, size, size), place, precision)
    try:
        with torch.no_grad():
            given.classifier(given.images_BCHW[:1])
    except Exception as error:  # any error that an architecture raises for an unsuitable size
        if fault := machine_fault(error):
            raise fault from error
        raise ConfigError(f"{arch} does not take {size}x{size} pixels: {first_line(error)}") from error
    return given


def in_precision(given: Workload, precision: Precision, place: torch.device) -> Workload:
    """Return a copy of a workload with another precision on another device; set TF32 for the whole process.

    Raise ConfigError if the device does not support the precision.
    """
    return _scorers(copy.deepcopy(given.classifier).float(), given.images_BCHW.float(), place, precision)


def _scorers(classifier: nn.Module, images_BCHW: Tensor, place: torch.device, precision: Precision) -> Workload:
    """Prepare the classifier, in place, and the engine in the way that the scorer does."""
    transform = TransformSettings(crop=(images_BCHW.shape[2], images_BCHW.shape[3]))
    compute = Compute(place, precision)
    engine = Observer(classifier, transform, Signals(), compute).engine
    images_BCHW = images_BCHW.to(place, compute.dtype, memory_format=torch.channels_last)
    return Workload(engine.classifier, engine, images_BCHW)


def forward(given: Workload) -> Prepared:
    """Compute only the logits."""

    def work() -> None:
        with torch.no_grad():
            given.classifier(given.images_BCHW)

    return Prepared(work, given.images_BCHW)


def training_step(given: Workload) -> Prepared:
    """Run a forward and a full backward pass into .grad, as in training, but in eval mode like everything else here."""

    def work() -> None:
        _backward(given.classifier, given.images_BCHW)
        given.classifier.zero_grad()

    return Prepared(work, given.images_BCHW)


def ours(given: Workload) -> Prepared:
    """Run the engine, whose plan is made beforehand."""
    given.engine.plan(given.images_BCHW)
    return Prepared(lambda: given.engine(given.images_BCHW, ["all_hot"]), given.images_BCHW)


def loop(given: Workload) -> Prepared:
    """Process one image after the other, and read the norms from .grad."""
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
    """Compute per-sample gradients with torch.func, a whole chunk in memory at once, and then their norms.

    Raise MemoryError if the gradients of one image exceed VMAP_BYTES.
    """
    classifier = given.classifier
    if any(parameter.dtype != given.images_BCHW.dtype for parameter in classifier.parameters()):
        classifier = copy.deepcopy(classifier).to(given.images_BCHW.dtype)  # vmap needs one type in a BatchNorm
    parameters = {name: parameter.detach() for name, parameter in classifier.named_parameters()}
    each = sum(parameter.nbytes for parameter in parameters.values())
    if each > VMAP_BYTES:
        raise MemoryError(f"the gradients of one image take {each / 1e9:.1f} GB")
    most = GPU_PART if given.images_BCHW.is_cuda else PART
    chunk_BCHW = given.images_BCHW[: min(most, VMAP_BYTES // each)]

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
