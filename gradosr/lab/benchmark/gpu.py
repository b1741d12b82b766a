"""Complete measurement of gradosr on one CUDA device, within minutes: `gradosr bench gpu OUT.json`.

It is meant for a device that is available only for a while, on a machine with just torch, torchvision and the light
libraries. It needs neither Ray nor boto3. From a folder that is not installed, run

    PYTHONPATH=. python3 -m gradosr.lab.benchmark.gpu OUT.json --seconds 240

Sections are ordered by importance. Each is written as it ends, a failed one leaves its reason, and none begins after
the time limit. Figures are medians of five runs after a warm-up; every contender has the engine's weights and images
(contenders.py). Ratios below 1 are faster than a training step.
"""

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

import joblib
from torch import Tensor, nn

from gradosr.config import BaselineSettings, OneClassSettings, Precision
from gradosr.gradients import GradientEngine, graphs
from gradosr.gradients.explain import Explained
from gradosr.lab.benchmark.accuracy import accuracy
from gradosr.lab.benchmark.contenders import CONTENDERS, FORWARD, LOOP, TRAINING_STEP, VMAP, Workload, workload
from gradosr.lab.benchmark.device_facts import (
    CLASSES,
    OBJECTIVES,
    Facts,
    Meter,
    Record,
    ceilings,
    profiled,
    versions,
    waits,
)
from gradosr.lab.benchmark.device_job import Job, decoding, made_up, second_worker
from gradosr.lab.benchmark.engine import TWINS, ZERO
from gradosr.scoring.compute import pick_device

LAST_BLOCKS = {"layer3 and on": ("layer3", "layer4", "fc"), "layer4 and on": ("layer4", "fc"), "fc": ("fc",)}


@dataclass(frozen=True)
class Sizes:
    """The amount of work that is measured."""

    main: str = "torchvision:resnet50"
    others: tuple[str, ...] = tuple(
        f"torchvision:{name}" for name in ("vit_b_16", "convnext_tiny", "resnet18", "efficientnet_b0")
    )
    light: str = "torchvision:resnet18"
    """Network that a CPU computes in float64."""
    small: bool = False
    side: int = 224
    batch: int = 128
    batches: tuple[int, ...] = (64, 256, 512)
    """Further batch sizes of the main network."""
    compared: int = 64
    """Images in a batch whose first few are compared with the definition; enough for choosing forms."""
    job_batches: tuple[int, ...] = (64, 128, 256)
    jpegs: int = 256
    product: int = 8192
    copied: int = 2**31
    stretch: float = 2.0
    """Seconds of one run with two workers."""


SMALL = Sizes(
    main="torchvision:mobilenet_v3_small", others=("torchvision:squeezenet1_1",), light="torchvision:squeezenet1_1",
    small=True, side=32, batch=2, batches=(3,), compared=4, job_batches=(2,), jpegs=8, product=64, copied=2**16,
    stretch=0.1,
)  # fmt: skip


def measure(out: Path, limit: float, device: str, say: Callable[[str], object], *, small: bool = False) -> None:
    """Write all sections that begin within `limit` seconds. Raise ConfigError if the device does not exist."""
    place = pick_device(device)
    meter = Meter(place, runs=1, warm=0.0) if small else Meter(place)
    Bench(meter, SMALL if small else Sizes(), Record(out, limit, say)).run()


class Bench:
    """The sections of a measurement on one device."""

    def __init__(self, meter: Meter, sizes: Sizes, record: Record) -> None:
        self._meter, self._sizes, self._record = meter, sizes, record
        self._given: Workload | None = None

    def run(self) -> None:
        """Run all sections, the most important first."""
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
            self._given = None  # released first, to free its memory
            self._given = workload(arch, self._sizes.side, batch, self._meter.device, precision, CLASSES)
            return speed(self._given, self._meter)

        self._record.section(f"{_name(arch)}, {precision}, batch {batch}", work)

    def _kept(self) -> Workload:
        """Return the network of the previous section."""
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
        archive = cache(partial(made_up, sizes.jpegs, sizes.side, joblib.cpu_count()))  # made within a section
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
    """Measure images per second, time relative to a training step, and peak memory.

    The seconds until the second batch are included.
    """
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


# --- Forms ---


def forms(given: Workload) -> Facts:
    """Count the calls that use each form, by rule, and measure them by geometry.

    For each geometry there are the ms of all calls in use, and of one call in each form tried.
    """
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
    """Return whether a parameter is the weight, which represents its call."""
    return parameter.dim() > 1 or ("+" not in one.rule and not one.parameter.endswith("bias"))


def _geometries(given: Workload) -> dict[str, str]:
    """Describe every called module without children, with the shapes of its input and output, by name."""
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
    """Compare the same pass launched kernel by kernel and replayed as the engine's CUDA graph."""
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
    """Return images per second for the norms of the last stages alone, where the backward pass ends early."""
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
    """Run the measurement from a folder that is not installed."""
    rest = sys.argv[1:]
    if not rest or rest[0].startswith("-"):
        sys.exit("usage: python3 -m gradosr.lab.benchmark.gpu OUT.json [--seconds 240] [--small] [--device cuda|cpu]")
    small = "--small" in rest
    flags = dict(pairwise(rest))
    seconds, device = float(flags.get("--seconds", 240)), flags.get("--device", "cuda")
    measure(Path(rest[0]), seconds, device, lambda line: sys.stderr.write(f"{line}\n"), small=small)


if __name__ == "__main__":
    main()
