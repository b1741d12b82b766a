"""Threads that call a store."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


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
