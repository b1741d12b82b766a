"""Decompressed content of files, in bounded memory: gzip, bzip2, xz and Zstandard, told apart by the file's name."""

import bz2
import gzip
import io
import lzma
from collections.abc import Callable
from typing import BinaryIO, Protocol, cast

import pyarrow as pa

MAX_DICTIONARY = 256 * 2**20
"""Bytes that an xz file may ask for; its highest preset takes 65 MiB. Zstandard has its own limit, 128 MiB."""
_CHUNK = 64 * 2**10


def decompressed(file: BinaryIO, name: str) -> BinaryIO:
    """Return the decompressed content of a file, or the file itself if its name does not end in that of a compression.

    To go back in the content is to decompress it again from its beginning. Reading raises whatever the library raises
    over damage, and the file's own errors unchanged.
    """
    lower = name.lower()
    if lower.endswith((".gz", ".tgz")):
        return cast("BinaryIO", gzip.GzipFile(fileobj=file))
    if lower.endswith((".bz2", ".tbz2")):
        return cast("BinaryIO", bz2.BZ2File(file))
    if lower.endswith((".xz", ".txz")):
        return io.BufferedReader(_Decompressed(file, _Xz), _CHUNK)
    if lower.endswith((".zst", ".tzst")):
        return io.BufferedReader(_Decompressed(file, _Zstandard), _CHUNK)
    return file


class _Codec(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Decompressed(io.RawIOBase):
    """Decompressed bytes as a file; to go back, it begins again."""

    def __init__(self, file: BinaryIO, make: Callable[[BinaryIO], _Codec]) -> None:
        super().__init__()
        self._file, self._make = file, make
        self._codec, self._position = make(file), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        data = self._codec.read(len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET:
            raise io.UnsupportedOperation("only from the beginning")
        if offset < self._position:
            self._file.seek(0)
            self._codec, self._position = self._make(self._file), 0
        while self._position < offset and (skipped := self._codec.read(min(_CHUNK, offset - self._position))):
            self._position += len(skipped)
        return self._position


class _Xz:
    """Reader of one or more xz streams, one after the other: lzma.LZMAFile sets no limit to the memory asked for."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._stream = self._new()

    def read(self, size: int) -> bytes:
        while True:
            data = b""
            if self._stream.eof:  # padded with zeros, and maybe followed by a further stream
                data = self._stream.unused_data.lstrip(b"\0")
                while not data and (more := self._file.read(_CHUNK)):
                    data = more.lstrip(b"\0")
                if not data:
                    return b""
                self._stream = self._new()
            elif self._stream.needs_input and not (data := self._file.read(_CHUNK)):
                raise EOFError("Compressed file ended before the end-of-stream marker was reached")
            if content := self._stream.decompress(data, size):
                return content

    @staticmethod
    def _new() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(memlimit=MAX_DICTIONARY)


class _Zstandard:
    """Reader by pyarrow, one block of a tar file at a time: of a request that meets a cut, nothing is given out."""

    def __init__(self, file: BinaryIO) -> None:
        self._stream = pa.CompressedInputStream(pa.PythonFile(_Kept(file), "r"), "zstd")

    def read(self, size: int) -> bytes:
        return cast("bytes", self._stream.read(min(size, 512)))


class _Kept:
    """File that pyarrow does not close."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self.read = file.read

    def close(self) -> None:
        pass
