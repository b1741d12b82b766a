"""All that is worth knowing of gradosr on one CUDA device, within minutes: `gradosr bench gpu OUT.json`.

For a device that can be had only for a while, on a machine with torch, torchvision and the light libraries alone:
needs neither Ray nor boto3, and from a folder that is not installed,

    PYTHONPATH=. python3 -m gradosr.lab.benchmark.gpu OUT.json --seconds 240

Sections stand in order of worth; each is written as it ends, one that fails leaves its reason, and none begins when
time is up. Figures are medians of five runs after a warm-up; every contender has the engine's weights and images (see
contenders.py). Ratios below 1 are faster than a training step.
"""

import copy
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from gradosr.config import BaselineSettings, OneClassSettings, Precision
from gradosr.gradients import GradientEngine, graphs
from gradosr.gradients.explain import Explained
from gradosr.gradients.slow import slow_squared_norms
from gradosr.lab.benchmark.contenders import (
    CONTENDERS,
    FORWARD,
    LOOP,
    TRAINING_STEP,
    VMAP,
    Workload,
    in_precision,
    workload,
)
from gradosr.lab.benchmark.device_facts import Facts, Meter, Record, ceilings, cores, profiled, versions, waits
from gradosr.lab.benchmark.device_job import Job, decoding, made_up, second_worker
from gradosr.lab.benchmark.engine import TWINS, ZERO
from gradosr.scoring.compute import pick_device, use_precision

OBJECTIVES = ("predicted", "max_logit")
CLASSES = 1000
LAST_BLOCKS = {"layer3 and on": ("layer3", "layer4", "fc"), "layer4 and on": ("layer4", "fc"), "fc": ("fc",)}


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    main: str = "torchvision:resnet50"
    others: tuple[str, ...] = tuple(
        f"torchvision:{name}" for name in ("vit_b_16", "convnext_tiny", "resnet18", "efficientnet_b0")
    )
    light: str = "torchvision:resnet18"
    """The one that a CPU computes in float64."""
    small: bool = False
    side: int = 224
    batch: int = 128
    batches: tuple[int, ...] = (64, 256, 512)
    """Of the main network, too."""
    compared: int = 64
    """Images of the batch whose first few are compared with the definition: enough to choose forms by."""
    job_batches: tuple[int, ...] = (64, 128, 256)
    jpegs: int = 256
    product: int = 8192
    copied: int = 2**31
    stretch: float = 2.0
    """Seconds."""


SMALL = Sizes(
    main="torchvision:mobilenet_v3_small", others=("torchvision:squeezenet1_1",), light="torchvision:squeezenet1_1",
    small=True, side=32, batch=2, batches=(3,), compared=4, job_batches=(2,), jpegs=8, product=64, copied=2**16,
    stretch=0.1,
)  # fmt: skip


def measure(out: Path, limit: float, device: str, say: Callable[[str], object], *, small: bool = False) -> None:
    """Write all sections that begin within `limit` seconds. Raises ConfigError where there is no such device."""
    place = pick_device(device)
    meter = Meter(place, runs=1, warm=0.0) if small else Meter(place)
    Bench(meter, SMALL if small else Sizes(), Record(out, limit, say)).run()


class Bench:
    """The sections, on one device."""

    def __init__(self, meter: Meter, sizes: Sizes, record: Record) -> None:
        self._meter, self._sizes, self._record = meter, sizes, record
        self._given: Workload | None = None

    def run(self) -> None:
        """All of them, in order of worth."""
        sizes, section = self._sizes, self._record.section
        section("versions", lambda: versions(self._meter))
        section("ceilings", lambda: ceilings(self._meter, sizes.product, sizes.copied))
        self._network(sizes.main, "bfloat16", sizes.batch)
        self._cuda("profile", lambda: profiled(self._engine(), self._meter))
        section(f"forms of {_name(sizes.main)}", lambda: forms(self._kept()))
        self._cuda("waits of the engine", lambda: waits(self._engine()))
        self._whole_job()
        self._cuda("CUDA graph", lambda: launched_and_replayed(self._kept(), self._meter))
        section("last blocks", lambda: last_blocks(self._kept(), self._meter))
        side = min(sizes.side, 64)
        section("accuracy, to the CPU", lambda: accuracy(sizes.light, side, TWINS, self._meter, on_cpu=True))
        section(
            f"accuracy of {_name(sizes.main)}", partial(accuracy, sizes.main, sizes.side, sizes.compared, self._meter)
        )
        for arch in sizes.others:
            self._network(arch, "bfloat16", sizes.batch)
            section(f"forms of {_name(arch)}", lambda: forms(self._kept()))
        for batch in sizes.batches:
            self._network(sizes.main, "bfloat16", batch)
        self._given = None
        work = partial(second_worker, sizes.main, sizes.side, sizes.batch, "bfloat16", self._meter, sizes.stretch)
        self._cuda("second worker", work)
        for precision in ("tf32", "float32"):
            self._network(sizes.main, precision, sizes.batch)
        for arch in sizes.others:
            self._accuracy(arch)
        for name in (VMAP, LOOP):
            section(f"{name}, bfloat16", partial(self._slow_way, name))

    def _accuracy(self, arch: str) -> None:
        work = partial(accuracy, arch, self._sizes.side, self._sizes.compared, self._meter)
        self._record.section(f"accuracy of {_name(arch)}", work)

    def _network(self, arch: str, precision: Precision, batch: int) -> None:
        def work() -> Facts:
            self._given = None  # first, for its memory
            self._given = workload(arch, self._sizes.side, batch, self._meter.device, precision, CLASSES)
            return speed(self._given, self._meter)

        self._record.section(f"{_name(arch)}, {precision}, batch {batch}", work)

    def _kept(self) -> Workload:
        """The network of the section before."""
        if self._given is None:
            raise RuntimeError("the section of the network itself did not come to its end")
        return self._given

    def _engine(self) -> Callable[[], Any]:
        given = self._kept()
        return lambda: given.engine(given.images_BCHW, OBJECTIVES)

    def _cuda(self, name: str, work: Callable[[], Any]) -> None:
        self._record.section(name, work if self._meter.device.type == "cuda" else lambda: "needs CUDA")

    def _whole_job(self) -> None:
        sizes, meter = self._sizes, self._meter
        archive = cache(partial(made_up, sizes.jpegs, sizes.side, cores()))  # within a section
        batch = sizes.job_batches[0]
        self._record.section("decoding", lambda: decoding(archive(), meter, batch, small=sizes.small))
        for settings in (OneClassSettings(), BaselineSettings(kind="energy")):

            def work(settings: OneClassSettings | BaselineSettings = settings) -> Facts:
                job = Job(sizes.main, archive(), settings, meter, "bfloat16")
                return job.facts(sizes.job_batches, small=sizes.small)

            self._record.section(f"job, {settings.kind}", work)

    def _slow_way(self, name: str) -> Facts:
        sizes, meter = self._sizes, self._meter
        given = workload(sizes.main, sizes.side, sizes.batch, meter.device, "bfloat16", CLASSES)
        prepared = CONTENDERS[name](given)
        return {"images/s": len(prepared.images_BCHW) / meter.seconds(prepared.work)}


def speed(given: Workload, meter: Meter) -> Facts:
    """Images per second, time over that of a training step, and peak memory; seconds until the second batch."""
    images_BCHW, engine = given.images_BCHW, given.engine
    works: dict[str, Callable[[], object]] = {
        FORWARD: CONTENDERS[FORWARD](given).work,
        TRAINING_STEP: CONTENDERS[TRAINING_STEP](given).work,
        "engine, 0 objectives": lambda: engine(images_BCHW, []),
        "engine, 1 objective": lambda: engine(images_BCHW, OBJECTIVES[-1:]),
        "engine, 2 objectives": lambda: engine(images_BCHW, OBJECTIVES),
    }
    seconds = {name: meter.seconds(works[name]) for name in (FORWARD, TRAINING_STEP)}
    facts: Facts = {
        "planning s": meter.once(lambda: engine.plan(images_BCHW)),
        "first batch s": meter.once(works["engine, 2 objectives"]),
        "fallback": list(engine.plan(images_BCHW).fallback),
    }
    for name, work in works.items():
        spent = seconds[name] if name in seconds else meter.seconds(work)
        facts[name] = {
            "images/s": len(images_BCHW) / spent,
            "of training step": spent / seconds[TRAINING_STEP],
            "peak MiB": meter.peak_mib(work),
        }
    return facts


# --- Accuracy ---


def accuracy(arch: str, side: int, batch: int, meter: Meter, *, on_cpu: bool = False) -> Facts:
    """Norms and logits of the engine, and of autograd, in each precision against autograd in float64.

    The definition has float32's weights and images, so that what bfloat16 makes of them counts as an error too. The
    objective is `max_logit`: with random weights the losses of the others saturate, and rounding is all they have.
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
    use_precision("float32", meter.device)
    return facts


def _definition(classifier: nn.Module, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Norms and logits, image by image."""
    with torch.no_grad():
        logits_BK = torch.cat([classifier(image[None]) for image in images_BCHW])
    return slow_squared_norms(classifier, images_BCHW, OBJECTIVES[-1]), logits_BK.double().cpu()


def _differences(found_BP: Tensor, truth_BP: Tensor) -> Facts:
    """Relative ones, with the floor of conformance.py below which a true norm is rounding alone."""
    floor_B1 = ZERO * truth_BP.amax(1, keepdim=True)
    relative_BP = (found_BP.double().cpu() - truth_BP).abs() / (truth_BP + floor_B1)
    return {"largest": float(relative_BP.max()), "median": float(relative_BP.median())}


def _of_largest(found_BK: Tensor, truth_BK: Tensor) -> float:
    """Largest difference of a logit, as a share of the image's largest."""
    return float(((found_BK.double().cpu() - truth_BK).abs() / truth_BK.abs().amax(1, keepdim=True)).max())


# --- Forms ---


def forms(given: Workload) -> Facts:
    """By rule how many calls use which form; by geometry ms of all calls in use, and of one call in each form tried."""
    shapes, parameters = _geometries(given), dict(given.classifier.named_parameters())
    counts: Counter[str] = Counter()
    table: dict[str, Facts] = {}
    for one in given.engine.explain(given.images_BCHW):
        if not _leads(one, parameters[one.parameter]):
            continue
        counts[f"{one.rule}: {one.form}"] += 1
        shape = shapes.get(one.parameter.rpartition(".")[0], f"{tuple(parameters[one.parameter].shape)}")
        row = table.setdefault(f"{shape}, {one.rule}", {"calls": 0, "ms": 0.0, "in use": Counter(), "tried": {}})
        row["calls"] += 1
        row["ms"] += one.milliseconds or 0.0
        row["in use"][str(one.form)] += 1
        for form, milliseconds in one.measured.items():
            row["tried"].setdefault(form, []).append(milliseconds)
    for row in table.values():
        row["tried"] = {form: fmean(spent) for form, spent in row["tried"].items()}
    total = sum(row["ms"] for row in table.values())
    by_cost = dict(sorted(table.items(), key=lambda item: -item[1]["ms"]))
    return {"counts": dict(counts), "ms of all norms, one objective": total, "by geometry": by_cost}


def _leads(one: Explained, parameter: Tensor) -> bool:
    """Whether it is the one parameter that stands for its call: its weight."""
    return parameter.dim() > 1 or ("+" not in one.rule and not one.parameter.endswith("bias"))


def _geometries(given: Workload) -> dict[str, str]:
    """What every called module without children is and makes of one image, by name."""
    seen: dict[str, str] = {}

    def note(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor) and inputs and isinstance(inputs[0], Tensor):
            what = type(module).__name__
            if isinstance(module, nn.Conv2d):
                size, stride = ("x".join(map(str, pair)) for pair in (module.kernel_size, module.stride))
                what += f" {size} stride {stride} groups {module.groups}"
            shapes = (str(list(tensor.shape[1:])) for tensor in (inputs[0], output))
            seen.setdefault(name, f"{what} {' -> '.join(shapes)}")

    handles = [
        module.register_forward_hook(partial(note, name))
        for name, module in given.classifier.named_modules()
        if not list(module.children())
    ]
    try:
        CONTENDERS[FORWARD](given).work()
    finally:
        for handle in handles:
            handle.remove()
    return seen


def launched_and_replayed(given: Workload, meter: Meter) -> Facts:
    """The same pass launched kernel by kernel, and as the CUDA graph that the engine makes of it."""
    images_BCHW, engine = given.images_BCHW, GradientEngine(given.engine.classifier)
    with patch.object(graphs, "MOST", 0):
        launched = meter.seconds(lambda: engine(images_BCHW, OBJECTIVES))
        expected_BP = engine(images_BCHW, OBJECTIVES)[-1].values_BP
    replayed = meter.seconds(lambda: given.engine(images_BCHW, OBJECTIVES))
    found_BP = given.engine(images_BCHW, OBJECTIVES)[-1].values_BP
    floor_B1 = ZERO * expected_BP.amax(1, keepdim=True)
    difference = float(((found_BP - expected_BP).abs() / (expected_BP + floor_B1)).max())
    return {"launched ms": 1e3 * launched, "replayed ms": 1e3 * replayed, "largest difference": difference}


def last_blocks(given: Workload, meter: Meter) -> Facts:
    """Images per second of the norms of the last stages alone, where the backward pass ends early."""
    images_BCHW, facts = given.images_BCHW, Facts()
    whole = given.engine.plan(images_BCHW)
    for name, prefixes in LAST_BLOCKS.items():
        engine = GradientEngine(given.engine.classifier)
        engine.plan(images_BCHW)
        (planned,) = engine._planned.values()
        uses = {number: use for number, use in whole.uses.items() if use.parameters[0].startswith(prefixes)}
        planned.plan = replace(whole, uses=uses)
        facts[name] = len(images_BCHW) / meter.seconds(partial(engine, images_BCHW, OBJECTIVES))
    return facts


def _name(arch: str) -> str:
    return arch.partition(":")[2]


def main() -> None:
    """Run from a folder that is not installed."""
    rest = sys.argv[1:]
    if not rest or rest[0].startswith("-"):
        sys.exit("usage: python3 -m gradosr.lab.benchmark.gpu OUT.json [--seconds 240] [--small] [--device cuda|cpu]")
    small = "--small" in rest
    flags = dict(pairwise(rest))
    seconds, device = float(flags.get("--seconds", 240)), flags.get("--device", "cuda")
    measure(Path(rest[0]), seconds, device, lambda line: sys.stderr.write(f"{line}\n"), small=small)


if __name__ == "__main__":
    main()
