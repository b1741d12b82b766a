"""Which devices run the fused kernels."""

import functools
import importlib
import importlib.util
from types import ModuleType

import torch
from torch import Tensor


def fused_kernels(tensor: Tensor) -> ModuleType | None:
    """The module gradosr.gradients.fused where its kernels run on the tensor's device and type; else None."""
    return None if tensor.dtype == torch.float64 else fused_kernels_of(tensor.device)


@functools.cache
def fused_kernels_of(device: torch.device) -> ModuleType | None:
    """The same of a device: CUDA with tensor cores of the Ampere kind or newer, and Triton."""
    # A device that torch merely imitates (a fake tensor's) says that it is CUDA, too.
    if device.type != "cuda" or not torch.cuda.is_initialized() or importlib.util.find_spec("triton") is None:
        return None
    capable = torch.cuda.get_device_capability(device) >= (8, 0)
    return importlib.import_module("gradosr.gradients.fused") if capable else None
