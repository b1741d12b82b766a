"""Memory that a process holds, on the CPU or on a GPU, and the most it held."""

import ctypes
import gc
from pathlib import Path

import torch

PROC = Path("/proc/self")


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
