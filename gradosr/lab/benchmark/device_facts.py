"""Facts about a device and about a piece of work on it.

They cover the device's properties and peak performance, and the time, memory, kernels and waits of the work.
"""

import json
import math
import platform
import statistics
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

import joblib
import torch

from gradosr.scoring.compute import Compute
from gradosr.scoring.memory import forget_peak, peak

Work = Callable[[], object]
Facts = dict[str, Any]
OBJECTIVES = ("predicted", "max_logit")
"""Objectives of the default detector."""
CLASSES = 1000
TOP = 16
"""Number of kernels listed by name, those that take the longest."""
NAMED = 110
"""Characters kept of a kernel's name; names of templates are longer."""


@dataclass(frozen=True)
class Meter:
    """Measurement of work on one device, after a warm-up that raises its clocks."""

    device: torch.device
    runs: int = 5
    warm: float = 0.15
    """Seconds of warm-up, with at least two runs."""

    def wait(self) -> None:
        """Wait until the device has finished its queued work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def once(self, work: Work) -> float:
        """Return the seconds of one run, without a warm-up."""
        self.wait()
        start = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - start

    def seconds(self, work: Work) -> float:
        """Return the median seconds of all runs."""
        spent = 0.0
        for number in range(1000):
            spent += self.once(work)
            if number >= 1 and spent >= self.warm:
                break
        return statistics.median(self.once(work) for _ in range(self.runs))

    def peak_mib(self, work: Work) -> float | None:
        """Return the most memory that torch held on a CUDA device, in MiB, including weights and images.

        Return None on other devices.
        """
        if self.device.type != "cuda":
            return None
        forget_peak(on_gpu=True)
        work()
        self.wait()
        return peak(on_gpu=True) / 2**20

    def rate(
        self, batches: Iterator[Sequence[object]], work: Callable[[Any], object], size: int, stretch: int
    ) -> float:
        """Return images per second of a stream of batches of `size`, the median of stretches of `stretch` batches.

        The first batch, and what was prepared for it, is not counted.
        """
        work(next(batches))
        rates = []
        for _ in range(self.runs):
            self.wait()
            start = time.perf_counter()
            for batch in islice(batches, stretch):
                work(batch)
            self.wait()
            rates.append(stretch * size / (time.perf_counter() - start))
        return statistics.median(rates)


def short(value: Any) -> Any:
    """Shorten values for people and JSON: four significant digits, infinity and NaN as text, keys as text."""
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {str(key): short(one) for key, one in value.items()}
    return [short(one) for one in value] if isinstance(value, list | tuple) else value


def versions(meter: Meter) -> Facts:
    """Return the versions of the device, its driver, and the software that computes on it."""
    facts: Facts = {
        "device": Compute(meter.device).name,
        "cores": joblib.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    for package in ("torchvision", "triton", "numpy"):
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = None
    if meter.device.type == "cuda":
        driver = Path("/proc/driver/nvidia/version")
        facts["driver"] = driver.read_text(encoding="utf-8").splitlines()[0] if driver.exists() else None
        facts["cuda"], facts["cudnn"] = torch.version.cuda, torch.backends.cudnn.version()
        facts["GiB"] = torch.cuda.get_device_properties(0).total_memory / 2**30
    return facts


def ceilings(meter: Meter, side: int, size: int) -> Facts:
    """Measure the device's best performance.

    This covers a product of bfloat16 matrices [side, side], a copy of `size` bytes, and the launch of a kernel.
    """
    a, b = (torch.randn(side, side, device=meter.device).bfloat16() for _ in range(2))
    source = torch.randint(0, 2**31, (size // 8,), device=meter.device)
    target, tiny = torch.empty_like(source), torch.zeros(1, device=meter.device)

    def launches() -> None:
        for _ in range(1000):
            tiny.add_(1)

    return {
        "bfloat16 TFLOP/s": 2 * side**3 / meter.seconds(lambda: a @ b) / 1e12,
        "copy TB/s, read and written": 2 * source.nbytes / meter.seconds(lambda: target.copy_(source)) / 1e12,
        "launch of a kernel, us": 1e3 * meter.seconds(launches),
    }


def profiled(work: Work, meter: Meter, wall: float | None = None) -> Facts:
    """Return the kernels of one run and how long they keep the device busy.

    The busy time is related to the seconds that the run takes without the profiler.
    """
    from torch.profiler import ProfilerActivity, profile

    wall = meter.seconds(work) if wall is None else wall
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        work()
        meter.wait()
    kernels = [
        (event.time_range.start, event.time_range.end, event.name[:NAMED])
        for event in seen.events() or ()
        if event.device_type.name == "CUDA" and not getattr(event, "is_user_annotation", False)
    ]
    times: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for start, end, name in kernels:
        times[name] += end - start
        counts[name] += 1
    busy = covered([kernel[:2] for kernel in kernels]) / 1e6
    return {
        "kernels": len(kernels),
        "busy ms": 1e3 * busy,
        "wall ms": 1e3 * wall,
        "idle share": 1 - busy / wall,
        "ms of the longest, and how many": {name: [us / 1e3, counts[name]] for name, us in times.most_common(TOP)},
    }


def covered(spans: Sequence[tuple[float, float]]) -> float:
    """Return the length of the union of the spans."""
    covered, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered


def waits(work: Work) -> Facts:
    """Count how often one run waits for the CUDA device, by line of code."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    told = [one for one in caught if "called a synchronizing" in str(one.message)]
    return dict(Counter(f"{'/'.join(Path(one.filename).parts[-2:])}:{one.lineno}" for one in told))


class Record:
    """A JSON file that grows by one entry per section; if a section fails, the entry is the reason."""

    def __init__(self, out: Path, limit: float, say: Callable[[str], object]) -> None:
        self._out, self._limit, self._say = out, limit, say
        self._start = time.perf_counter()
        self._facts: Facts = {}

    def section(self, name: str, work: Callable[[], Any]) -> None:
        """Do the work unless the time limit has passed, and write its result."""
        start = self._spent()
        if start > self._limit:
            found: Any = f"not begun: {start:.0f} s had passed"
        else:
            try:
                found = work()
            except Exception as error:  # the next section may work
                frame = traceback.extract_tb(error.__traceback__)[-1]
                found = f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}: {error}"[:500]
        self._facts[name] = short(found)
        self._facts["seconds"] = {**self._facts.get("seconds", {}), name: short(self._spent() - start)}
        self._out.write_text(json.dumps(self._facts, indent=1) + "\n", encoding="utf-8")
        self._say(f"{self._spent():6.1f} s  {name}: {json.dumps(self._facts[name])[:300]}")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _spent(self) -> float:
        return time.perf_counter() - self._start
