"""Distance of norms and logits of each precision from those of float64."""

import copy

import torch
from torch import Tensor, nn

from gradosr.gradients.slow import slow_squared_norms
from gradosr.lab.benchmark.contenders import in_precision, workload
from gradosr.lab.benchmark.device_facts import CLASSES, OBJECTIVES, Facts, Meter
from gradosr.lab.benchmark.engine import TWINS, ZERO
from gradosr.scoring.compute import Compute


def accuracy(arch: str, side: int, batch: int, meter: Meter, *, on_cpu: bool = False) -> Facts:
    """Compare norms and logits of the engine, and of autograd, in each precision with autograd in float64.

    The definition uses float32's weights and images, so that their rounding to bfloat16 counts as an error too. The
    objective is `max_logit`: with random weights the other losses saturate, which leaves only rounding.
    """
    base = workload(arch, side, batch, torch.device("cpu") if on_cpu else meter.device, "float32", CLASSES)
    truth_BP, logits_BK = _definition(copy.deepcopy(base.classifier).double(), base.images_BCHW[:TWINS].double())
    facts: Facts = {}
    for precision in ("float32", "tf32", "bfloat16"):
        if precision == "tf32" and meter.device.type != "cuda":
            facts[precision] = "needs CUDA"
            continue
        given = in_precision(base, precision, meter.device)
        (found,) = given.engine(given.images_BCHW, OBJECTIVES[-1:])
        own_BP, own_BK = _definition(given.classifier, given.images_BCHW[:TWINS])
        facts[precision] = {
            "engine": _differences(found.values_BP[:TWINS], truth_BP),
            "autograd": _differences(own_BP, truth_BP),
            "engine, logits": _of_largest(found.logits_BK[:TWINS], logits_BK),
            "autograd, logits": _of_largest(own_BK, logits_BK),
        }
    Compute(meter.device).prepare()
    return facts


def _definition(classifier: nn.Module, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Return norms and logits, computed image by image."""
    with torch.no_grad():
        logits_BK = torch.cat([classifier(image[None]) for image in images_BCHW])
    return slow_squared_norms(classifier, images_BCHW, OBJECTIVES[-1]), logits_BK.double().cpu()


def _differences(found_BP: Tensor, truth_BP: Tensor) -> Facts:
    """Return relative differences, with conformance.py's floor below which a true norm is only rounding."""
    floor_B1 = ZERO * truth_BP.amax(1, keepdim=True)
    relative_BP = (found_BP.double().cpu() - truth_BP).abs() / (truth_BP + floor_B1)
    return {"largest": float(relative_BP.max()), "median": float(relative_BP.median())}


def _of_largest(found_BK: Tensor, truth_BK: Tensor) -> float:
    """Return the largest difference of a logit, as a share of the image's largest logit."""
    return float(((found_BK.double().cpu() - truth_BK).abs() / truth_BK.abs().amax(1, keepdim=True)).max())
