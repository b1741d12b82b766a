"""Peak memory of a contender on one batch, in a fresh process of its own.

Counted is what the batch takes beyond a process that holds the classifier and the images and has trained on one image,
so that torch's libraries are loaded. A training step's .grad is therefore its own, and so is what the engine keeps
(plan, folded weights); the passing memory of planning, which happens once, is not. vmap's is that of one chunk.
"""

import ctypes
import gc
import logging
import multiprocessing
import signal
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gradosr.benchmark.contenders import CONTENDERS, TRAINING_STEP, workload
from gradosr.config import Precision

PROC = Path("/proc/self")


@dataclass(frozen=True)
class Peak:
    """Bytes; on a GPU those that torch allocated there, else those resident in the process."""

    resident: int
    beyond: int
    """What the batch added."""


def peak_memory(
    name: str, arch: str, size: int, batch: int, place: torch.device, precision: Precision = "float32"
) -> Peak | None:
    """Of the contender of that name; None where the system does not tell. Raises what the contender raises."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=_quiet) as child:
        try:
            return child.submit(_peak, name, arch, size, batch, place.type, precision).result()
        except BrokenProcessPool as error:
            raise MemoryError(f"its process died on a batch of {batch}; does it fit into memory?") from error


def _quiet() -> None:
    """Interrupted like any process, and the parent alone says what there is to say."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    logging.disable(logging.WARNING)


def _peak(name: str, arch: str, size: int, batch: int, device: str, precision: Precision = "float32") -> Peak | None:
    given = workload(arch, size, batch, torch.device(device), precision)
    CONTENDERS[TRAINING_STEP](replace(given, images_BCHW=given.images_BCHW[:1])).work()
    on_gpu = given.images_BCHW.is_cuda
    before = resident(on_gpu=on_gpu)
    prepared = CONTENDERS[name](given)
    resident(on_gpu=on_gpu)
    if not forget_peak(on_gpu=on_gpu):
        return None
    prepared.work()
    most = peak(on_gpu=on_gpu)
    return Peak(most, max(0, most - before))


def resident(*, on_gpu: bool) -> int:
    """Bytes in use, after everything free went back to the system."""
    gc.collect()
    if on_gpu:
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc alone
    if trim is not None:
        trim(0)
    return status_bytes("VmRSS")


def forget_peak(*, on_gpu: bool) -> bool:
    """The peak counts from now on; False where the system keeps none."""
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        return True
    try:
        (PROC / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak(*, on_gpu: bool) -> int:
    """Bytes, the most since `forget_peak`."""
    return torch.cuda.max_memory_allocated() if on_gpu else status_bytes("VmHWM")


def status_bytes(key: str) -> int:
    """Bytes, of /proc/self/status; 0 where there is none."""
    status = PROC / "status"
    lines = status.read_text(encoding="ascii", errors="replace").splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), 0)
