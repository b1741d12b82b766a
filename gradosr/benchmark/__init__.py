"""Speed of the gradient engine, beside what else the same network does on the same images."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gradosr.classifier import build_classifier
from gradosr.gradients import GradientEngine, objective
from gradosr.scorer import pick_device

Work = Callable[[nn.Module, Tensor], object]


def bench_engine(arch: str, size: int, batch: int, runs: int, device: str) -> dict[str, Any]:
    """Medians over `runs` rounds that take every contender in turn; images per second and ratios to a training step."""
    torch.manual_seed(0)
    place = pick_device(device)
    classifier = build_classifier(arch, {}, 10).to(place)
    images_BCHW = torch.randn(batch, 3, size, size, device=place)
    gradients = GradientEngine(classifier)
    contenders: dict[str, Work] = {
        "forward": _forward,
        "training step": _training_step,
        "gradosr": lambda _, images: gradients(images, ["all_hot"]),
        "batch-of-one loop": _loop,
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(runs + 1):  # the first round warms up
        for name, work in contenders.items():
            # A loop over images takes long and varies little: a part of the batch is enough.
            some = images_BCHW[:8] if work is _loop else images_BCHW
            elapsed = _seconds(work, classifier, some) * len(images_BCHW) / len(some)
            if turn:
                seconds[name].append(elapsed)
    return {
        "arch": arch,
        "size": size,
        "batch": batch,
        "runs": runs,
        "device": torch.cuda.get_device_name() if place.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "fallback_parameters": list(gradients.plan(images_BCHW).fallback),
        "images_per_second": {name: batch / statistics.median(times) for name, times in seconds.items()},
        "of_training_step": {name: _ratio(times, seconds["training step"]) for name, times in seconds.items()},
    }


def _ratio(times: list[float], others: list[float]) -> float:
    """Median of the ratios round by round, which outlives a drift of the machine."""
    return statistics.median(mine / theirs for mine, theirs in zip(times, others, strict=True))


def _seconds(work: Work, classifier: nn.Module, images_BCHW: Tensor) -> float:
    _wait(images_BCHW)
    start = time.perf_counter()
    work(classifier, images_BCHW)
    _wait(images_BCHW)
    return time.perf_counter() - start


def _wait(images_BCHW: Tensor) -> None:
    if images_BCHW.is_cuda:
        torch.cuda.synchronize()


def _forward(classifier: nn.Module, images_BCHW: Tensor) -> None:
    with torch.no_grad():
        classifier(images_BCHW)


def _training_step(classifier: nn.Module, images_BCHW: Tensor) -> None:
    """Forward and full backward into .grad, as training does it; eval mode like everything else here."""
    classifier.zero_grad()
    objective("all_hot")(classifier(images_BCHW)).sum().backward()
    classifier.zero_grad()


def _loop(classifier: nn.Module, images_BCHW: Tensor) -> None:
    for image_CHW in images_BCHW:
        classifier.zero_grad()
        objective("all_hot")(classifier(image_CHW[None])).sum().backward()
        [float(parameter.grad.pow(2).sum()) for parameter in classifier.parameters() if parameter.grad is not None]
    classifier.zero_grad()


def table(facts: Mapping[str, Any]) -> str:
    """For people."""
    head = (
        f"{facts['arch']} at {facts['size']} pixels, batch {facts['batch']}, {facts['device']}, torch {facts['torch']}"
    )
    rows = [f"{'':20}{'images/s':>10}{'time / training step':>22}"]
    for name, speed in facts["images_per_second"].items():
        rows.append(f"{name:20}{speed:10,.0f}{facts['of_training_step'][name]:22.2f}")
    return "\n".join([head, *rows])
