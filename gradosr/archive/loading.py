"""Turns encoded images into prepared batches, on threads that work ahead of the consumer."""

import functools
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

from gradosr.archive.decode import decode, to_input_size
from gradosr.archive.image import EncodedImage, Fault
from gradosr.config import TransformSettings
from gradosr.errors import MachineFault, machine_fault

logger = logging.getLogger(__name__)

T = TypeVar("T")
AHEAD_BYTES = 32 * 2**20
"""Bytes of pixels in prepared batches that wait to be scored; one more batch is in the making."""
MAX_HELD = 64 * 2**20
"""Bytes of images that wait to be decoded, the newest not counted; a batch of the largest is many times that."""
HELD_PER_THREAD = 4  # tasks that wait to be decoded or to be put into a batch
TASK_BYTES = 32 * 2**10
"""Bytes of encoded images that one task decodes: handing a task to a thread takes as long as decoding a kilobyte."""

CLOSE_SECONDS = 5.0
"""Seconds that closing waits for an item in the making; a store that does not answer takes minutes to give up."""


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """An image at the classifier's input size, or the reason why there is none."""

    encoded: EncodedImage
    """Key, label and source of the image; its bytes are left out."""
    width: int | None
    height: int | None
    pixels: Tensor | None
    """Pixels as uint8 [3, h, w]; None beside a fault."""
    fault: Fault | None
    seconds: float = 0.0
    """Seconds spent on decoding, resizing and cropping."""
    beside: Tensor | None = None
    """Pixels at the input size of a second network; those of the classifier where that is the same."""


def prepare(
    encoded: EncodedImage, transform: TransformSettings, max_pixels: int, beside: TransformSettings | None = None
) -> PreparedImage:
    """Decode one image, resize and crop it; for a second network with the transform `beside`, too.

    Raises MachineFault, with the image's key, if this machine is at fault.
    """
    bare = EncodedImage(encoded.key, b"", encoded.label, encoded.source)
    if encoded.fault:
        return PreparedImage(bare, None, None, None, encoded.fault)
    start = time.perf_counter()
    try:
        decoded = decode(encoded.data, max_pixels)
        sized, other = None, None
        if decoded.pixels is not None:
            sized = to_input_size(decoded.pixels, transform)
            if beside is not None:
                other = sized if _sizes(beside) == _sizes(transform) else to_input_size(decoded.pixels, beside)
    except Exception as error:
        if fault := machine_fault(error):
            raise MachineFault(f"{encoded.key}: {fault}") from error
        raise
    seconds = time.perf_counter() - start
    return PreparedImage(bare, decoded.width, decoded.height, sized, decoded.fault, seconds, other)


def _sizes(transform: TransformSettings) -> tuple[object, ...]:
    return transform.resize, transform.crop, transform.interpolation


def prepared_batches(
    images: Iterable[EncodedImage],
    transform: TransformSettings,
    max_pixels: int,
    size: int,
    threads: int,
    beside: TransformSettings | None = None,
) -> "Prefetcher[list[PreparedImage]]":
    """Prepare batches of `size` images in input order; an error of the reader ends them, at most one batch early.

    They are prepared on threads, which begin at once and hold no more than the bounds above and one batch.
    """
    prepared = _prepared(images, functools.partial(_prepare_all, transform, max_pixels, beside), size, threads)
    return Prefetcher(_batches(prepared, size), _pixel_bytes, AHEAD_BYTES)


def _prepared(
    images: Iterable[EncodedImage],
    work: Callable[[list[EncodedImage]], list[PreparedImage]],
    size: int,
    threads: int,
) -> Iterator[PreparedImage]:
    """Do the work on threads and yield its results in input order; what waits for a thread is bounded."""
    pool = decoding_threads(threads)
    running: deque[tuple[Future[list[PreparedImage]], int]] = deque()
    held, most = 0, min(size, HELD_PER_THREAD * threads)
    try:
        for task in _tasks(images, size // most):
            length = sum(len(encoded.data) for encoded in task)
            while running and (len(running) == most or held + length > MAX_HELD):
                oldest, ended = running.popleft()
                yield from oldest.result()
                held -= ended
            running.append((pool.submit(work, task), length))
            held += length
        while running:
            yield from running.popleft()[0].result()
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare_all(
    transform: TransformSettings, max_pixels: int, beside: TransformSettings | None, task: list[EncodedImage]
) -> list[PreparedImage]:
    return [prepare(encoded, transform, max_pixels, beside) for encoded in task]


def _batches(prepared: Iterator[PreparedImage], size: int) -> Iterator[list[PreparedImage]]:
    while batch := list(islice(prepared, size)):
        yield batch


def decoding_threads(threads: int) -> ThreadPoolExecutor:
    """Make threads that decode on one core each: a resize spread over all cores would hold up the other threads.

    With 16 threads of 16 each on 16 cores, 1,809 images/s were decoded; one core alone decodes 1,363.
    """
    return ThreadPoolExecutor(threads, "decode", initializer=_use_one_core)


def _use_one_core() -> None:
    torch.get_num_threads()  # torch gives a thread its number at its first operation; from here on it stays
    _thread_pools().limit(limits=1, user_api="openmp")


@functools.cache
def _thread_pools() -> ThreadpoolController:
    return ThreadpoolController()


def _tasks(images: Iterable[EncodedImage], most: int) -> Iterator[list[EncodedImage]]:
    """Group neighbours, up to TASK_BYTES or `most` images."""
    task: list[EncodedImage] = []
    length = 0
    for encoded in images:
        task.append(encoded)
        length += len(encoded.data)
        if length >= TASK_BYTES or len(task) == most:
            yield task
            task, length = [], 0
    if task:
        yield task


def _pixel_bytes(batch: list[PreparedImage]) -> int:
    return sum(_nbytes(one.pixels) + (_nbytes(one.beside) if one.beside is not one.pixels else 0) for one in batch)


def _nbytes(pixels: Tensor | None) -> int:
    return 0 if pixels is None else pixels.nbytes


class Prefetcher(Iterator[T]):
    """Items of an iterator, in order, made ahead on a thread that begins at once and rests while enough of them wait.

    At least `budget` by `weigh` is enough; an item is begun whatever it will weigh. An error of the iterator is raised
    in its place. Closing this, or dropping it, ends the thread and waits for the item it is making, for CLOSE_SECONDS
    at most.
    """

    def __init__(self, items: Iterator[T], weigh: Callable[[T], int], budget: int) -> None:
        self._queue = queue = _Queue[T](budget)
        # The thread knows the queue and not this object, which can therefore be dropped while it runs.
        thread = threading.Thread(target=_fill, args=(queue, items, weigh), name="prefetch", daemon=True)
        thread.start()
        self._finish = weakref.finalize(self, _end, queue, thread)
        self._finish.atexit = False

    def __next__(self) -> T:
        try:
            return self._queue.get()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the thread and drop what waits; nothing more comes. Harmless when repeated."""
        self._finish()


class _Queue(Generic[T]):
    """Items with their weights between one thread that makes them and one that takes them."""

    def __init__(self, budget: int) -> None:
        self._budget, self._weight = budget, 0
        self._items = deque[tuple[T, int]]()
        self._end: BaseException | None = None  # raised when all items are taken
        self._closed = False
        self._changed = threading.Condition()

    def put(self, item: T, weight: int) -> bool:
        """Add an item and wait until more is wanted; answer False once nothing ever is."""
        with self._changed:
            self._items.append((item, weight))
            self._weight += weight
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._closed or self._weight < self._budget)
            return not self._closed

    def end(self, error: BaseException) -> None:
        """Let this be raised once all items are taken."""
        with self._changed:
            if not self._closed:
                self._end = error
            self._changed.notify_all()

    def get(self) -> T:
        """Wait for the next item and take it; raise what ended them, or StopIteration once this is closed.

        The wait ends with the making of the item: calls of a store have time limits, decoders bounds on their work.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._end is not None or self._closed)
            if not self._items:
                raise StopIteration if self._end is None else self._end
            item, weight = self._items.popleft()
            self._weight -= weight
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """Drop what waits, and want nothing more."""
        with self._changed:
            self._closed, self._end = True, None  # whose traceback would keep this queue
            self._items.clear()
            self._changed.notify_all()


def _fill(queue: _Queue[T], items: Iterator[T], weigh: Callable[[T], int]) -> None:
    """Make items until there are no more or nobody wants them."""
    try:
        for item in items:
            if not queue.put(item, weigh(item)):
                return
        queue.end(StopIteration())
    except BaseException as error:  # handed to the consumer, whatever it is
        queue.end(error)


def _end(queue: _Queue[T], thread: threading.Thread) -> None:
    queue.close()
    if thread is threading.current_thread():  # on which the garbage collector may find this dropped
        return
    thread.join(CLOSE_SECONDS)
    if thread.is_alive():  # in the attempts of a read from a store that does not answer; it ends with them
        logger.warning("reading ahead did not end within %g s; nobody waits for it any longer", CLOSE_SECONDS)
