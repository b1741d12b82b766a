"""Which devices run the fused kernels."""

import functools
import importlib
import importlib.util
import os
from types import ModuleType

import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether kernels run on the CPU, one operation after the other: Triton's own way of testing them."""


def fused_kernels(tensor: Tensor) -> ModuleType | None:
    """The module gradosr.gradients.fused where its kernels run on the tensor's device and type; else None."""
    return None if tensor.dtype == torch.float64 else fused_kernels_of(tensor.device)


@functools.cache
def fused_kernels_of(device: torch.device) -> ModuleType | None:
    """The same of a device: CUDA with tensor cores of the Ampere kind or newer, and Triton."""
    capable = (
        device.type == "cuda" and torch.cuda.is_initialized() and torch.cuda.get_device_capability(device) >= (8, 0)
    )
    if not (capable or INTERPRETED) or importlib.util.find_spec("triton") is None:
        return None
    return importlib.import_module("gradosr.gradients.fused")
