"""Threads that call a store, or another server."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

UPLOAD_BYTES = 2**16  # per second, the least with which a body must go up

T = TypeVar("T")


@contextmanager
def threads(count: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """Run calls on threads while the block runs. Calls whose result nobody took are not waited for.

    A call to a store that does not answer ends by its own time limits and attempts, which take minutes: an error or
    an interruption of the block does not wait for that.
    """
    pool = ThreadPoolExecutor(count, name)
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class Progress:
    """Signs of life of a call that somebody waits for."""

    def __init__(self) -> None:
        self.last = time.monotonic()
        self.given_up = False

    def step(self) -> None:
        """Tell that the call goes on. Raises TimeoutError if nobody waits for it any more."""
        if self.given_up:
            raise TimeoutError("given up")
        self.last = time.monotonic()


def within(seconds: float, call: Callable[[Progress], T], longer: float = 0.0) -> T:
    """Return what a call returns; raise TimeoutError once it has made no step for that many seconds.

    Its first step may take that much `longer`. The time limit of a socket begins anew with each byte, so a server could
    send by the byte for ever. A thread cannot be interrupted: one that is given up ends with its connection, and keeps
    no process from ending.
    """
    progress, outcome = Progress(), Future[T]()
    progress.last += longer

    def run() -> None:
        try:
            outcome.set_result(call(progress))
        except BaseException as error:  # whatever it is, it is the caller's
            outcome.set_exception(error)

    threading.Thread(target=run, name="gradosr-call", daemon=True).start()
    while True:
        left = progress.last + seconds - time.monotonic()
        if wait([outcome], max(0, left)).done:
            try:
                return outcome.result()
            finally:
                del outcome  # which the traceback of its error would keep, and so itself
        if left <= 0:
            progress.given_up = True
            raise TimeoutError(f"no answer within {seconds:g} s")
