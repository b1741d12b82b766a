"""Memory that this process holds on the CPU or on a GPU, and its peak."""

import ctypes
import gc
from pathlib import Path

import torch

PROC = Path("/proc/self")


def resident(*, on_gpu: bool) -> int:
    """Return the bytes in use, after returning all free memory to the system."""
    gc.collect()
    if on_gpu:
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only in glibc
    if trim is not None:
        trim(0)
    return status_bytes("VmRSS")


def forget_peak(*, on_gpu: bool) -> bool:
    """Reset the peak, so that it counts from now on; return False if the system keeps none."""
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        return True
    try:
        (PROC / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak(*, on_gpu: bool) -> int:
    """Return the largest number of bytes in use since `forget_peak`."""
    return torch.cuda.max_memory_allocated() if on_gpu else status_bytes("VmHWM")


def status_bytes(key: str) -> int:
    """Return an entry of /proc/self/status in bytes; 0 if there is none."""
    status = PROC / "status"
    lines = status.read_text(encoding="ascii", errors="replace").splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), 0)
