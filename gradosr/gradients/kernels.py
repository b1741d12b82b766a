"""Availability of the fused kernels on a device."""

import functools
import importlib
import importlib.util
from types import ModuleType

import torch
from torch import Tensor


def fused_kernels(tensor: Tensor) -> ModuleType | None:
    """Return the module gradosr.gradients.fused if its kernels support the tensor's device and type, else None."""
    return None if tensor.dtype == torch.float64 else fused_kernels_of(tensor.device)


@functools.cache
def fused_kernels_of(device: torch.device) -> ModuleType | None:
    """Return the module gradosr.gradients.fused if its kernels support the device, else None.

    They need CUDA with tensor cores of the Ampere generation or newer, and Triton.
    """
    # The simulated device of a fake tensor also has the type cuda.
    if device.type != "cuda" or not torch.cuda.is_initialized() or importlib.util.find_spec("triton") is None:
        return None
    capable = torch.cuda.get_device_capability(device) >= (8, 0)
    return importlib.import_module("gradosr.gradients.fused") if capable else None
