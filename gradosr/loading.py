"""Encoded images in, prepared batches out: decoding on threads, ahead of whoever consumes them."""

import queue
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from torch import Tensor

from gradosr.config import TransformSettings
from gradosr.images import decode, to_input_size
from gradosr.readers import EncodedImage, Fault

T = TypeVar("T")
AHEAD = 2  # batches prepared while one is scored


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
    """Batches of `size` images in input order; errors of the reader are raised where their batch would be."""

    def batches() -> Iterator[list[PreparedImage]]:
        source = iter(images)
        with ThreadPoolExecutor(threads, "decode") as pool:
            while batch := list(islice(source, size)):
                yield list(pool.map(lambda one: prepare(one, transform, max_pixels), batch))

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
