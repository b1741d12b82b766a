"""Benchmark of the gradient engine against other work with the same network and images: time, memory, exactness.

It needs neither Ray nor boto3.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from gradosr.config import Precision
from gradosr.errors import ClassifierError, GradosrError, first_line
from gradosr.gradients.explain import Explained
from gradosr.gradients.slow import slow_squared_norms
from gradosr.lab.benchmark.contenders import CONTENDERS, TRAINING_STEP, VMAP, Prepared, Workload, in_precision, workload
from gradosr.lab.benchmark.memory import peak_memory
from gradosr.scoring.compute import Compute, pick_device

CONFIGURATIONS = (
    ("torchvision:resnet18", 32, 64),
    ("torchvision:resnet18", 224, 16),
    ("torchvision:resnet50", 224, 8),
    ("torchvision:mobilenet_v3_large", 224, 16),
    ("torchvision:efficientnet_b0", 224, 64),
    ("timm:efficientnet_lite0", 224, 64),
    ("torchvision:vit_b_16", 224, 8),
    ("torchvision:convnext_tiny", 224, 8),
)
"""Architecture, image size in pixels and images per batch of each row in the table of docs/cost.md."""
SLOW = 10.0
"""Seconds of a warm-up above which a contender takes part only in FEW rounds."""
FEW = 2
TWINS = 4
"""Number of images that are compared with the slow definition."""
ZERO = 1e-6
"""Share of an image's largest norm that separates rounding from signal where the true gradient is zero."""
T = TypeVar("T")


def bench_engine(
    arch: str, size: int, batch: int, runs: int, device: str, precision: Precision = "float32"
) -> dict[str, Any]:
    """Return medians over `runs` rounds, each of which runs every contender once.

    `of_training_step` holds ratios of times; memory is defined in memory.py, and null if the system does not report it.
    vmap does not support every network: `failed` then gives the reason, and its figures are missing.
    """
    place = pick_device(device)
    given = workload(arch, size, batch, place, precision)
    failed: dict[str, str] = {}
    # Memory comes first: a contender too large for this machine then kills a child process, not the benchmark.
    measure = partial(peak_memory, arch=arch, size=size, batch=batch, place=place, precision=precision)
    peaks = {name: _attempt(name, failed, partial(measure, name)) for name in CONTENDERS}
    seconds = _rounds(given, runs, failed)
    beyond = {name: peak.beyond for name, peak in peaks.items() if peak and name not in failed}
    resident = {name: peak.resident for name, peak in peaks.items() if peak and name not in failed}
    step_takes = beyond.get(TRAINING_STEP, 0)
    return {
        "arch": arch,
        "size": size,
        "batch": batch,
        "runs": runs,
        "precision": precision,
        "device": Compute(place).name,
        "torch": torch.__version__,
        "fallback_parameters": list(given.engine.plan(given.images_BCHW).fallback),
        "images_per_second": {name: batch / statistics.median(times) for name, times in seconds.items()},
        "of_training_step": {name: _ratio(times, seconds[TRAINING_STEP]) for name, times in seconds.items()},
        "memory_bytes": beyond,
        "peak_bytes": resident,
        "memory_of_training_step": {name: mine / step_takes for name, mine in beyond.items() if step_takes},
        "largest_difference": largest_difference(given),
        "failed": failed,
    }


def explain_engine(arch: str, size: int, batch: int, device: str, precision: Precision = "float32") -> list[Explained]:
    """Return the rule, form and cost of each parameter of an architecture."""
    given = workload(arch, size, batch, pick_device(device), precision)
    return given.engine.explain(given.images_BCHW)


def largest_difference(given: Workload) -> float:
    """Return the largest difference to the slow definition: |ours - slow| / (slow + ZERO of the image's largest norm).

    The definition is computed in float32 on the same weights; TF32 is off afterwards.
    """
    found_BP = given.engine(given.images_BCHW, ["all_hot"])[0].values_BP[:TWINS].double().cpu()
    twin = in_precision(given, "float32", given.images_BCHW.device)
    slow_BP = slow_squared_norms(twin.classifier, twin.images_BCHW[:TWINS])
    return float(((found_BP - slow_BP).abs() / (slow_BP + ZERO * slow_BP.amax(1, keepdim=True))).max())


def _attempt(name: str, failed: dict[str, str], work: Callable[[], T]) -> T | None:
    """Run the work; a failure of vmap is recorded, while a failure of another contender raises ClassifierError."""
    try:
        return work()
    except GradosrError:
        raise
    except Exception as error:  # any error that torch raises for an unsuitable network or batch
        if name != VMAP:
            raise ClassifierError(f"{name}: {first_line(error)}") from error
        failed[name] = first_line(error)
        return None


def _rounds(given: Workload, runs: int, failed: dict[str, str]) -> dict[str, list[float]]:
    """Return the seconds that each contender takes for the batch, round by round."""
    ready: dict[str, tuple[Prepared, int]] = {}
    for name in CONTENDERS:
        if name not in failed and (found := _attempt(name, failed, partial(_warm, name, given))):
            prepared, seconds = found
            ready[name] = prepared, min(runs, FEW) if seconds > SLOW else runs
    measured: dict[str, list[float]] = {name: [] for name in ready}
    for turn in range(runs):
        for name, (prepared, turns) in ready.items():
            if turn < turns:
                measured[name].append(_seconds(prepared) * len(given.images_BCHW) / len(prepared.images_BCHW))
    return measured


def _warm(name: str, given: Workload) -> tuple[Prepared, float]:
    """Return the contender after its first run, and the seconds of that run."""
    prepared = CONTENDERS[name](given)
    return prepared, _seconds(prepared)


def _seconds(prepared: Prepared) -> float:
    _wait(prepared.images_BCHW)
    start = time.perf_counter()
    prepared.work()
    _wait(prepared.images_BCHW)
    return time.perf_counter() - start


def _wait(images_BCHW: Tensor) -> None:
    if images_BCHW.is_cuda:
        torch.cuda.synchronize()


def _ratio(times: list[float], others: list[float]) -> float:
    """Return the median of the ratios of each round, which is robust to a drift of the machine's speed."""
    return statistics.median(mine / theirs for mine, theirs in zip(times, others, strict=False))
