"""Devices and precisions."""

import torch

from gradosr.config import Precision
from gradosr.errors import ConfigError


def pick_device(wanted: str) -> torch.device:
    """Auto takes CUDA where there is one. Raises ConfigError when CUDA is asked for in vain."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: cuda, but torch finds no CUDA device here; use device: auto or cpu")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def use_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """The type to compute in; TF32 is switched for the whole process. Raises ConfigError for it without CUDA."""
    if precision == "tf32" and device.type != "cuda":
        raise ConfigError("precision: tf32, which only CUDA devices have; use precision: float32 or bfloat16")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False  # sums stay in float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32
