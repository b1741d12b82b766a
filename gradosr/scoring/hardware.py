"""Names of devices, to be reported beside measurements."""

import os
import platform
from pathlib import Path

import torch


def hardware(place: torch.device) -> str:
    """Return the name of a device; for the CPU, its processor and number of threads."""
    if place.type == "cuda":
        return torch.cuda.get_device_name()
    return f"{_processor()}, {torch.get_num_threads()} threads"


def _processor() -> str:
    about = Path("/proc/cpuinfo")
    lines = about.read_text(encoding="utf-8").splitlines() if about.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine() or os.name
