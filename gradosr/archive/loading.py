"""Encoded images in, prepared batches out: decoding on threads, ahead of whoever consumes them."""

import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

from gradosr.archive.decode import decode, to_input_size
from gradosr.archive.image import EncodedImage, Fault
from gradosr.config import TransformSettings

T = TypeVar("T")
AHEAD_BYTES = 32 * 2**20
"""Of pixels in prepared batches that wait to be scored; one more batch is in the making."""
MAX_HELD = 64 * 2**20
"""Bytes of images that wait to be decoded, the newest not counted; a batch of the largest is many times that."""
HELD_PER_THREAD = 4  # tasks that wait to be decoded or to be put into a batch
TASK_BYTES = 32 * 2**10
"""Of encoded images that one task decodes: to hand a task to a thread takes as long as to decode a kilobyte."""


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """An image at the classifier's input size, or the reason why there is none."""

    encoded: EncodedImage
    """Without its bytes."""
    width: int | None
    height: int | None
    pixels: Tensor | None
    """uint8 [3, h, w]."""
    fault: Fault | None
    seconds: float = 0.0
    """Spent on decoding, resizing and cropping."""


def prepare(encoded: EncodedImage, transform: TransformSettings, max_pixels: int) -> PreparedImage:
    """Decode, resize and crop one image."""
    bare = EncodedImage(encoded.key, b"", encoded.label, encoded.source)
    if encoded.fault:
        return PreparedImage(bare, None, None, None, encoded.fault)
    start = time.perf_counter()
    decoded = decode(encoded.data, max_pixels)
    pixels = None if decoded.pixels is None else to_input_size(decoded.pixels, transform)
    seconds = time.perf_counter() - start
    return PreparedImage(bare, decoded.width, decoded.height, pixels, decoded.fault, seconds)


def prepared_batches(
    images: Iterable[EncodedImage], transform: TransformSettings, max_pixels: int, size: int, threads: int
) -> Iterator[list[PreparedImage]]:
    """Batches of `size` images in input order; an error of the reader ends them, at most one batch early.

    They are prepared on threads, which begin at once and hold no more than the bounds above and one batch.
    """

    def prepared() -> Iterator[PreparedImage]:
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
                running.append((pool.submit(prepare_all, task), length))
                held += length
            while running:
                yield from running.popleft()[0].result()
        finally:
            pool.shutdown(cancel_futures=True)

    def prepare_all(task: list[EncodedImage]) -> list[PreparedImage]:
        return [prepare(encoded, transform, max_pixels) for encoded in task]

    def batches() -> Iterator[list[PreparedImage]]:
        source = prepared()
        while batch := list(islice(source, size)):
            yield batch

    return ahead(batches(), _pixel_bytes, AHEAD_BYTES)


def decoding_threads(threads: int) -> ThreadPoolExecutor:
    """Threads for images, one each: a resize that spread over all cores would hold up those that decode on them.

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
    """Neighbours together, up to TASK_BYTES or `most` images."""
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
    return sum(image.pixels.nbytes for image in batch if image.pixels is not None)


def ahead(items: Iterator[T], weigh: Callable[[T], int], budget: int) -> Iterator[T]:
    """The same items, made on a thread that begins at once and rests as long as `budget` of them wait.

    Weights are those of `weigh`; an item is begun whatever it will weigh. Dropping or closing this iterator ends the
    thread.
    """
    made: deque[tuple[T | None, BaseException | None]] = deque()
    changed, waiting, stopped = threading.Condition(), 0, False

    def offer(item: T | None, weight: int, error: BaseException | None = None) -> bool:
        """Whether more is wanted, once it is."""
        nonlocal waiting
        with changed:
            made.append((item, error))
            waiting += weight
            changed.notify_all()
            changed.wait_for(lambda: stopped or waiting < budget)
            return not stopped

    def produce() -> None:
        try:
            for item in items:
                if not offer(item, weigh(item)):
                    return
            offer(None, 0, StopIteration())
        except BaseException as error:  # handed to the consumer, whatever it is
            offer(None, 0, error)

    def consume() -> Iterator[T | None]:
        nonlocal waiting, stopped
        try:
            yield None
            while True:
                with changed:
                    changed.wait_for(lambda: made)
                    item, error = made.popleft()
                    waiting -= weigh(item) if error is None else 0  # type: ignore[arg-type]  # None only beside an error
                    changed.notify_all()
                if isinstance(error, StopIteration):
                    return
                if error is not None:
                    raise error
                yield item
        finally:
            with changed:
                stopped = True
                changed.notify_all()
            thread.join()

    thread = threading.Thread(target=produce, name="ahead", daemon=True)
    thread.start()
    taken = consume()
    next(taken)  # into its `try`: a generator that never began would be dropped without it
    return taken  # type: ignore[return-value]
