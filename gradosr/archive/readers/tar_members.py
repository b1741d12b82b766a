"""Members of a tar file, read strictly: a cut or a garbled header is an error, not the end."""

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from gradosr.archive.shards import as_text
from gradosr.errors import StoreError, machine_fault
from gradosr.text import reason

BLOCK = tarfile.BLOCKSIZE
_MAX_HEADER = 128 * 2**10  # bytes of a member's headers: long names, pax records, maps of holes in chains without end


class Cut(Exception):
    """The archive breaks off or continues with something that is not tar."""


def name_of(member: tarfile.TarInfo) -> str:
    """Return a member's name as text, without the "./" that `tar c .` puts before it."""
    name = as_text(member.name)
    while name.startswith("./"):
        name = name[2:]
    return name


def members(stream: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Yield the headers of all members, also of archives that were put behind the first with `cat`. Raises Cut."""
    yield from _up_to_end_mark(stream)
    while _goes_on(stream):
        yield from _up_to_end_mark(stream)


def _up_to_end_mark(stream: BinaryIO) -> Iterator[tarfile.TarInfo]:
    headers = _Headers(stream)
    with cuts():
        archive = _Archive(fileobj=headers, mode="r", encoding="utf-8")  # type: ignore[arg-type]
    if not archive.members:  # behind an end mark that comes first, tarfile of older Pythons seeks to -1
        return
    while True:
        headers.left = _MAX_HEADER
        with cuts():
            member = archive.next()
        if member is None:
            return
        if archive.offset <= member.offset:  # a size below zero, which tarfile of older Pythons follows for ever
            raise Cut("a header that leads backwards")
        archive.members.clear()  # tarfile keeps them all otherwise
        yield member


def _goes_on(stream: BinaryIO) -> bool:
    """Skip the zeros of an end mark and tell whether a member follows. Raises Cut if something else does.

    What is lost where the zeros themselves break off cannot be known: such an archive counts as whole.
    """
    block = b""
    with suppress(Cut), cuts():
        while (block := stream.read(BLOCK)) and not block.strip(b"\0"):
            pass
    if not block.strip(b"\0"):
        return False
    with cuts():
        try:
            _Header.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"no tar member behind an end mark: {error}") from error
        stream.seek(stream.tell() - BLOCK)
    return True


def content(stream: BinaryIO, start: int, size: int) -> bytes:
    """Read `size` bytes of a member's content, which begins at `start`. Raises Cut where there are fewer."""
    with cuts():
        stream.seek(start)
        data = stream.read(size)
        if len(data) < size:
            raise tarfile.ReadError("unexpected end of data")
    return data


def check_first_block(stream: BinaryIO) -> None:
    """Raise Cut if this is not a tar archive at all."""
    with cuts():
        block = stream.read(BLOCK)
        stream.seek(0)
        if block != bytes(BLOCK):
            _Header.frombuf(block, "utf-8", "surrogateescape")


@contextmanager
def cuts() -> Iterator[None]:
    """Turn whatever tarfile or a codec raises over a damaged archive into Cut, but never the store's own errors.

    Raises MachineFault for what this machine lacks.
    """
    try:
        yield
    except StoreError:
        raise
    except Exception as error:  # header parsing raises anything: ValueError, IndexError, RecursionError, zlib.error
        if fault := machine_fault(error):
            raise fault from error
        raise Cut(reason(error)) from error


class _Headers:
    """File that tarfile reads headers from; after `left` more bytes, however far apart, it raises."""

    left = _MAX_HEADER

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int) -> bytes:
        self.left -= size
        if self.left < 0:
            raise tarfile.ReadError(f"headers of more than {_MAX_HEADER} bytes")
        return self._stream.read(size)


class _Header(tarfile.TarInfo):
    """Strict header: after the first member, tarfile mistakes a cut or garbled header for the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "_Header":
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # a block of zeros: the end as it should be
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"no end mark: {error}") from error

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Header":
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0:
            raise tarfile.HeaderError(f"a header of {header.size} bytes")
        return header


class _Archive(tarfile.TarFile):
    tarinfo = _Header
    members: list[tarfile.TarInfo]
