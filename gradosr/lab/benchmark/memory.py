"""Peak memory of a contender on one batch, in a fresh process of its own.

The figure is the memory of the batch beyond that of a process that holds the classifier and the images and has trained
on one image, so that torch's libraries are loaded. It therefore includes a training step's .grad, and what the engine
keeps (plan, folded weights), but not the temporary memory of planning, which happens once. For vmap it is the memory of
one chunk.
"""

import logging
import multiprocessing
import signal
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace

import torch

from gradosr.config import Precision
from gradosr.lab.benchmark.contenders import CONTENDERS, TRAINING_STEP, workload
from gradosr.scoring.memory import forget_peak, peak, resident


@dataclass(frozen=True)
class Peak:
    """Bytes of memory: allocated by torch on a GPU, otherwise resident in the process."""

    resident: int
    beyond: int
    """Bytes that the batch added."""


def peak_memory(
    name: str, arch: str, size: int, batch: int, place: torch.device, precision: Precision = "float32"
) -> Peak | None:
    """Return the peak memory of the named contender, or None if the system does not report it.

    Raise the errors that the contender raises.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=_quiet) as child:
        try:
            return child.submit(_peak, name, arch, size, batch, place.type, precision).result()
        except BrokenProcessPool as error:
            raise MemoryError(f"its process died on a batch of {batch}; does it fit into memory?") from error


def _quiet() -> None:
    """Let this process be interrupted like any other, and leave messages to the parent."""
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
