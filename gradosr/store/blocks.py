"""A seekable file over ranged reads: blocks of one size, a few in flight, read ahead while access is sequential."""

import io
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BLOCK_BYTES = 8 * 2**20
IN_FLIGHT = 4
KEPT_BLOCKS = 6  # more than IN_FLIGHT, so a block just asked for is never dropped
BUFFER_BYTES = 2**18  # for readers of 512-byte headers

Fetch = Callable[[int, int, threading.Event], bytearray]
"""Function that returns exactly the bytes [start, stop) of the object or raises; gives up once the event is set."""


def open_blocks(size: int, fetch: Fetch) -> BinaryIO:
    """Open a buffered file of `size` bytes, to be closed. Memory is bounded by KEPT_BLOCKS plus IN_FLIGHT blocks."""
    return io.BufferedReader(_BlockFile(size, fetch), BUFFER_BYTES)


class _BlockFile(io.RawIOBase):
    """The file itself. Errors of `fetch` reach the reader unchanged; a failed block is fetched again when wanted."""

    def __init__(self, size: int, fetch: Fetch) -> None:
        super().__init__()
        self._size = size
        self._fetch = fetch
        self._position = 0
        self._last = -1  # the block read last; -1 makes a start at the beginning sequential
        self._blocks: OrderedDict[int, Future[bytearray]] = OrderedDict()  # the least recently wanted first
        self._cancelled = threading.Event()
        self._pool = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="gradosr-read")  # threads start when needed

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"negative seek position {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Read at most to the end of the block: BufferedReader asks again for the rest."""
        if self.closed:
            raise ValueError("read of closed file")
        target = memoryview(buffer).cast("B")
        if self._position >= self._size or not target:
            return 0
        index, start = divmod(self._position, BLOCK_BYTES)
        source = memoryview(self._block(index, start + len(target)))[start : start + len(target)]
        target[: len(source)] = source
        self._position += len(source)
        return len(source)

    def readall(self) -> bytes:
        """Read the rest, without the 8 KiB steps of RawIOBase."""
        rest = bytearray(max(0, self._size - self._position))
        filled = 0
        while filled < len(rest):
            filled += self.readinto(memoryview(rest)[filled:])
        return bytes(rest)

    def close(self) -> None:
        """Let the threads end: at once, or as soon as the read they are in returns or times out."""
        if not self.closed:
            self._cancelled.set()
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._blocks.clear()
        super().close()

    def _block(self, index: int, needed: int) -> bytearray:
        """Return block `index`; fetch those after it too if `needed` bytes reach into them or reading is in order."""
        ahead = IN_FLIGHT if index == self._last + 1 else min(-(-needed // BLOCK_BYTES), IN_FLIGHT)
        self._last = index
        for wanted in range(index, min(index + ahead, -(-self._size // BLOCK_BYTES))):
            if wanted not in self._blocks:
                start = wanted * BLOCK_BYTES
                stop = min(start + BLOCK_BYTES, self._size)
                self._blocks[wanted] = self._pool.submit(self._fetch, start, stop, self._cancelled)
            self._blocks.move_to_end(wanted)
        while len(self._blocks) > KEPT_BLOCKS:
            self._blocks.popitem(last=False)[1].cancel()
        try:
            return self._blocks[index].result()
        except Exception:  # whatever it was: a failed block is not kept, so that a later read tries again
            del self._blocks[index]
            raise
