"""Memory that this process holds on the CPU or on a GPU, its peak, and what is still free."""

import ctypes
import gc
import sys
from pathlib import Path

import torch

PROC = Path("/proc/self")
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
CGROUP_FILES = {
    "memory.max": "memory.current",
    "memory/memory.limit_in_bytes": "memory/memory.usage_in_bytes",
}
"""Files with the limit and the usage of a container's memory, of both versions of cgroups."""


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
    return _entry(PROC / "status", key) or 0


def free(*, on_gpu: bool) -> int:
    """Return the bytes that this process may still take: of the device, or of the machine and of its container.

    The largest number there is, if the system tells nothing.
    """
    if on_gpu:
        unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return torch.cuda.mem_get_info()[0] + unused
    limits = [
        _entry(MEMINFO, "MemAvailable"),
        *(_left(CGROUP / most, CGROUP / now) for most, now in CGROUP_FILES.items()),
    ]
    return min((limit for limit in limits if limit is not None), default=sys.maxsize)


def _left(limit: Path, usage: Path) -> int | None:
    """Return the bytes left to a container; None if it has no limit. Cached files do not count: they give way."""
    if not limit.exists() or not limit.read_text().strip().isdecimal():  # "max" stands for none
        return None
    statistics = (limit.parent / "memory.stat").read_text(encoding="ascii").split()
    entries = dict(zip(statistics[::2], map(int, statistics[1::2]), strict=True))
    cached = entries.get("total_inactive_file", entries.get("inactive_file", 0))
    return max(0, int(limit.read_text()) - int(usage.read_text()) + cached)


def _entry(file: Path, key: str) -> int | None:
    """Return an entry of a file of /proc, given in kB, as bytes; None if there is none."""
    lines = file.read_text(encoding="ascii", errors="replace").splitlines() if file.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), None)
