"""Devices, and how a classifier computes on them."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import joblib
import torch
from torch import Tensor

from gradosr.config import ComputeSettings, Precision
from gradosr.errors import ConfigError
from gradosr.scoring import memory

SHARE_OF_FREE = 0.5
"""Share of the free memory that a batch may use by default."""
MOST_ON_A_CPU = 2**30
"""Most bytes that a batch may use on a CPU by default."""


@dataclass(frozen=True)
class Compute:
    """A device for a classifier, with the precision and the memory of its computation.

    Raises ConfigError for TF32 without CUDA.
    """

    device: torch.device
    precision: Precision = "float32"
    max_memory: int | None = None
    """Bytes that a batch may use besides the weights; None for all that is available."""

    def __post_init__(self) -> None:
        if self.precision == "tf32" and not self.on_gpu:
            raise ConfigError("precision: tf32, which only CUDA devices have; use precision: float32 or bfloat16")

    @property
    def dtype(self) -> torch.dtype:
        """Type of the classifier's weights and activations."""
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32

    @property
    def on_gpu(self) -> bool:
        """Whether the device has memory and a queue of its own."""
        return self.device.type == "cuda"

    @property
    def name(self) -> str:
        """Name of the device; for the CPU, its processor and number of threads."""
        if self.on_gpu:
            return torch.cuda.get_device_name(self.device)
        return f"{_processor()}, {torch.get_num_threads()} threads"

    def prepare(self) -> None:
        """Switch TF32 on or off and bound the threads for the whole process.

        torch starts a thread for each core of the machine, even where a container may use only a few of them.
        """
        torch.set_num_threads(min(torch.get_num_threads(), joblib.cpu_count()))
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self.precision == "tf32"
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False  # accumulate in float32

    def stack(self, images: list[Tensor]) -> Tensor:
        """Return a batch of images on the CPU; for a GPU in pinned memory, which is copied while the CPU works."""
        batch = torch.empty((len(images), *images[0].shape), dtype=images[0].dtype, pin_memory=self.on_gpu)
        return torch.stack(images, out=batch)


def choose_compute(settings: ComputeSettings) -> Compute:
    """Resolve settings on this machine. Raises ConfigError for what it does not have: CUDA, or TF32 on a CPU."""
    device, most = pick_device(settings.device), settings.max_memory
    return Compute(device, settings.precision, _default_memory(device) if most is None else int(most * 2**30))


def _default_memory(device: torch.device) -> int:
    """Return the bytes that a batch may use by default.

    A GPU needs large batches to be fast. A CPU does not, and other processes share its memory.
    """
    on_gpu = device.type == "cuda"
    share = int(SHARE_OF_FREE * memory.free(on_gpu=on_gpu))
    return share if on_gpu else min(share, MOST_ON_A_CPU)


def pick_device(wanted: str) -> torch.device:
    """Return the device to compute on; `auto` picks CUDA if there is a CUDA device.

    Raises ConfigError if CUDA is requested but unavailable.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: cuda, but torch finds no CUDA device here; use device: auto or cpu")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def _processor() -> str:
    about = Path("/proc/cpuinfo")
    lines = about.read_text(encoding="utf-8").splitlines() if about.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine() or os.name
