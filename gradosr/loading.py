"""Encoded images in, prepared batches out: decoding on threads, ahead of whoever consumes them."""

import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from torch import Tensor

from gradosr.config import TransformSettings
from gradosr.images import decode, to_input_size
from gradosr.readers import MAX_ENCODED, EncodedImage, Fault

T = TypeVar("T")
AHEAD = 2  # batches prepared while one is scored
MAX_HELD = MAX_ENCODED
"""Bytes of images that wait to be decoded, the newest not counted; a batch of the largest is many times that."""


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
    """Batches of `size` images in input order; an error of the reader ends them, at most one batch early."""

    def prepared() -> Iterator[PreparedImage]:
        pool = ThreadPoolExecutor(threads, "decode")
        running: deque[tuple[Future[PreparedImage], int]] = deque()
        held = 0
        try:
            for encoded in images:
                while running and (len(running) == size or held + len(encoded.data) > MAX_HELD):
                    oldest, length = running.popleft()
                    yield oldest.result()
                    held -= length
                running.append((pool.submit(prepare, encoded, transform, max_pixels), len(encoded.data)))
                held += len(encoded.data)
            while running:
                yield running.popleft()[0].result()
        finally:
            pool.shutdown(cancel_futures=True)

    def batches() -> Iterator[list[PreparedImage]]:
        source = prepared()
        while batch := list(islice(source, size)):
            yield batch

    return ahead(batches(), AHEAD)


def ahead(items: Iterator[T], depth: int) -> Iterator[T]:
    """The same items, made on a thread up to `depth` ahead. Closing this iterator ends the thread."""
    made: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
    stopped = threading.Event()

    def offer(item: T | None, error: BaseException | None = None) -> bool:
        while not stopped.is_set():
            try:
                made.put((item, error), timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def produce() -> None:
        try:
            for item in items:
                if not offer(item):
                    return
            offer(None, StopIteration())
        except BaseException as error:  # handed to the consumer, whatever it is
            offer(None, error)

    thread = threading.Thread(target=produce, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]  # None only beside an error
    finally:
        stopped.set()
        thread.join()
