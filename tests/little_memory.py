"""A process with little memory, in which what lacks memory really lacks it."""

import ctypes
import multiprocessing
import os
import resource
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

FRESH = multiprocessing.get_context("forkserver")
"""Processes without what earlier tests have left free in the heap of this one."""
FRESH.set_forkserver_preload(["gradosr.archive.loading", "gradosr.archive.readers"])  # what takes long to import


def in_little_memory(work: Callable[..., str], spare: int, *args: object) -> str:
    """Run `work` in a process that gets `spare` bytes more than it has; return its answer, or what it raised."""
    ours, theirs = FRESH.Pipe(duplex=False)
    with ours, theirs:
        child = FRESH.Process(target=_answer, args=(theirs, work, spare, args))
        child.start()
        answer: str = ours.recv()
        child.join()
    return answer


def _answer(answers: Connection, work: Callable[..., str], spare: int, args: tuple[object, ...]) -> None:
    heap = ctypes.CDLL(None)
    heap.mallopt(-3, 2**16)  # M_MMAP_THRESHOLD: nothing large comes out of what is free in the heap
    heap.malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + spare,) * 2)
    try:
        answer = work(*args)
    except BaseException as error:
        answer = f"{type(error).__name__}: {error}"
    answers.send(answer[:4096])
    os._exit(0)
