"""Devices and precisions."""

import torch

from gradosr.config import Precision
from gradosr.errors import ConfigError


def pick_device(wanted: str) -> torch.device:
    """Return the device to compute on; `auto` picks CUDA if there is a CUDA device.

    Raises ConfigError if CUDA is requested but unavailable.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: cuda, but torch finds no CUDA device here; use device: auto or cpu")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def use_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the type to compute in, and switch TF32 on or off for the whole process.

    Raises ConfigError if TF32 is requested without CUDA.
    """
    if precision == "tf32" and device.type != "cuda":
        raise ConfigError("precision: tf32, which only CUDA devices have; use precision: float32 or bfloat16")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False  # accumulate in float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32
