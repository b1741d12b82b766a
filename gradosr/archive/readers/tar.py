"""Reader of WebDataset tar files with one row per image member; one sample at a time is held in memory."""

import gzip
import posixpath
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import BinaryIO, NamedTuple, TypeAlias

from gradosr.archive.image import EMPTY, MAX_ENCODED, EncodedImage, Fault, label_of, too_large
from gradosr.archive.names import APPLE_DOUBLE, count, is_apple_double, kind_of
from gradosr.archive.shards import IMAGE_SUFFIXES, Shard, as_text
from gradosr.config import TarInput
from gradosr.errors import ShardUnreadable, StoreError, machine_fault
from gradosr.store import Store
from gradosr.text import reason

_BLOCK = tarfile.BLOCKSIZE
_MAX_SAMPLE = 64 * 2**20  # bytes of images kept back until their sample's label comes
_MAX_LABEL = 4096  # bytes; of a longer one the beginning counts
_MAX_NAME = 4096  # letters; Linux has no longer paths
_HEAD = 8 * 2**20  # bytes that tell how many images there are in the rest
_MAX_HEADER = 128 * 2**10  # bytes of a member's headers: long names, pax records, maps of holes in chains without end


def read(
    shard: Shard, store: Store, _source: TarInput, label_names: tuple[str, ...] | None
) -> Generator[EncodedImage, None, Mapping[str, int]]:
    """Read the image members in archive order, followed by one `truncated` row if the archive breaks off.

    The label is the text of `KEY.cls` in the same sample; a sample is a run of consecutive members whose names agree up
    to the first dot of the last path step. Keys are SHARD#MEMBER; a repeated name gets #2, #3 and so on appended. A
    link has the bytes of the earlier member that it names. What macOS adds to an archive (`._NAME`, `__MACOSX/`) is
    left out. Returns the number of members that are no images, by kind.
    Raises ShardUnreadable if the file is not a tar archive at all.
    """
    passed_over = Counter[str]()
    with _opened(shard, store) as stream:
        yield from _images(shard, _entries(stream, passed_over), label_names)
    return passed_over


def pick(shard: Shard, store: Store, _source: TarInput, keys: frozenset[str]) -> Iterator[EncodedImage]:
    """Read the members with these keys; for all others up to the last of them, only the headers are read."""
    names = {_NUMBER.sub("", key) for key in keys} | keys  # a name may come again, or end so by itself
    times: dict[str, int] = {}
    left = set(keys)
    with _opened(shard, store) as stream:
        for entry in _entries(stream, Counter(), lambda name: f"{shard.name}#{name}" in names):
            if _is_label(entry.name):
                continue
            key = _unique(f"{shard.name}#{entry.name}", times)
            if key in left:
                left.remove(key)
                yield EncodedImage(key, entry.data, fault=entry.fault or (None if entry.data else EMPTY))
            if not left:
                return


_NUMBER = re.compile(r"#[0-9]+\Z")


@contextmanager
def _opened(shard: Shard, store: Store) -> Iterator["_Stream"]:
    with store.open(shard.stored) as file:
        yield _stream(shard, file)


def _stream(shard: Shard, file: BinaryIO) -> "_Stream":
    stream: _Stream = gzip.GzipFile(fileobj=file) if shard.uri.lower().endswith((".gz", ".tgz")) else file
    _check_first_block(shard, stream)
    return stream


def check(_shard: Shard, _store: Store, _source: TarInput) -> None:
    """Accept any file: no setting depends on what a tar archive contains."""


def images_in(shard: Shard, store: Store, _source: TarInput) -> int:
    """Count the image headers; for an archive larger than _HEAD bytes, extrapolate from its beginning."""
    images = 0
    with store.open(shard.stored) as file:
        for entry in _entries(_stream(shard, file), Counter(), lambda _: False):
            images += not _is_label(entry.name)
            if file.tell() > _HEAD:
                return round(images * shard.size / file.tell())
    return images


_Stream: TypeAlias = BinaryIO | gzip.GzipFile


class _Entry(NamedTuple):
    name: str
    data: bytes
    fault: Fault | None = None


def _images(shard: Shard, entries: Iterator[_Entry], label_names: tuple[str, ...] | None) -> Iterator[EncodedImage]:
    times: dict[str, int] = {}
    waiting: list[EncodedImage] = []  # images of this sample, as long as its label is not known
    sample, label, held = "", None, 0
    for entry in entries:
        if _sample(entry.name) != sample:
            yield from waiting
            waiting, sample, label, held = [], _sample(entry.name), None, 0
        if entry.fault is None and _is_label(entry.name):
            label = label_of(entry.data.decode(errors="backslashreplace").strip() or None, label_names)
            yield from (replace(image, label=label) for image in waiting)
            waiting = []
            continue
        key = _unique(f"{shard.name}#{entry.name}", times)
        waiting.append(EncodedImage(key, entry.data, label, fault=entry.fault or (None if entry.data else EMPTY)))
        held += len(entry.data)
        if label is not None or held > _MAX_SAMPLE:
            yield from waiting
            waiting, held = [], 0
    yield from waiting


def _sample(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _is_label(name: str) -> bool:
    return name.removeprefix(_sample(name)).lower() == ".cls"


def _unique(name: str, times: dict[str, int]) -> str:
    key = name
    while key in times:
        times[name] += 1
        key = f"{name}#{times[name]}"
    times[key] = 1
    return key


class _Cut(Exception):
    """The archive breaks off or continues with something that is not tar."""


def _entries(
    stream: _Stream, passed_over: Counter[str], wanted: Callable[[str], bool] = lambda _: True
) -> Iterator[_Entry]:
    """Read images and labels in archive order; if the archive is cut, a last entry holds the fault.

    The content of members whose names are not `wanted` is not read; other members are counted by kind in `passed_over`.
    """
    reading = ""  # the member whose bytes are being read
    files: dict[str, _File] = {}
    try:
        for member in _members(stream):
            name = _plain(member.name)
            linked = member.islnk() or member.issym()
            if not (member.isreg() or linked):
                continue
            if kind := _kind_left_out(name):
                count(kind, passed_over)
                continue
            file = files.get(_target(name, member)) if linked else _File(member.offset_data, member.size)
            if file is None or (fault := _refusal(name, member, file, stream)):
                if not _is_label(name):
                    yield _Entry(name[:_MAX_NAME], b"", fault if file else _dangling(name, member))
                continue
            files[name] = file
            if not wanted(name):
                yield _Entry(name, b"")
                continue
            reading = name
            data = _content(stream, file, _MAX_LABEL if _is_label(name) else MAX_ENCODED)
            reading = ""
            yield _Entry(name, data)
    except _Cut as cut:
        yield _Entry(reading or "truncated", b"", Fault("truncated", f"archive cut or damaged: {cut}"))


def _kind_left_out(name: str) -> str:
    """Return the kind by which a member that is neither image nor label is counted; empty for one that is read."""
    if is_apple_double(name):
        return APPLE_DOUBLE
    return "" if name.lower().endswith(IMAGE_SUFFIXES) or _is_label(name) else kind_of(name)


class _File(NamedTuple):
    """Bytes of a member, to which links may lead."""

    offset: int
    size: int


def _plain(name: str) -> str:
    name = as_text(name)
    while name.startswith("./"):
        name = name[2:]
    return name


def _target(name: str, link: tarfile.TarInfo) -> str:
    """Return the name of the member that a link leads to: a symbolic link's is relative to its folder."""
    target = _plain(link.linkname)
    return target if link.islnk() else posixpath.normpath(posixpath.join(posixpath.dirname(name), target))


def _dangling(name: str, link: tarfile.TarInfo) -> Fault:
    kind = "a hard link" if link.islnk() else "a symbolic link"
    return Fault("unsupported", f"{kind} to {_target(name, link)[:200]}, which is no image before it in this archive")


def _refusal(name: str, member: tarfile.TarInfo, file: _File, stream: _Stream) -> Fault | None:
    """Tell why a member must not be read; None if it may. Names are limited, as they stay in memory with the shard."""
    if file.offset != member.offset_data and isinstance(stream, gzip.GzipFile):
        return Fault("unsupported", "a link in a compressed tar, which would be read again for it; pack without links")
    if member.issparse():
        return Fault("unsupported", "a sparse tar member")
    if len(name) > _MAX_NAME:
        return Fault("unsupported", f"a name of {len(name)} letters is longer than {_MAX_NAME}")
    return too_large(file.size) if file.size > MAX_ENCODED and not _is_label(name) else None


def _members(stream: _Stream) -> Iterator[tarfile.TarInfo]:
    headers = _Headers(stream)
    with _cuts():
        archive = _Archive(fileobj=headers, mode="r", encoding="utf-8")  # type: ignore[arg-type]
    while True:
        headers.left = _MAX_HEADER
        with _cuts():
            member = archive.next()
        if member is None:
            return
        if archive.offset <= member.offset:  # a size below zero, which tarfile of older Pythons follows for ever
            raise _Cut("a header that leads backwards")
        archive.members.clear()  # tarfile keeps them all otherwise
        yield member


def _content(stream: _Stream, file: _File, limit: int) -> bytes:
    size = min(file.size, limit)
    with _cuts():
        stream.seek(file.offset)
        data = stream.read(size)
        if len(data) < size:
            raise tarfile.ReadError("unexpected end of data")
    return data


class _Headers:
    """File that tarfile reads headers from; after `left` more bytes, however far apart, it raises."""

    left = _MAX_HEADER

    def __init__(self, stream: _Stream) -> None:
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


def _check_first_block(shard: Shard, stream: _Stream) -> None:
    """Raise ShardUnreadable if this is not a tar archive at all; whatever fails later counts as a cut."""
    try:
        with _cuts():
            block = stream.read(_BLOCK)
            stream.seek(0)
            if block != bytes(_BLOCK):
                _Header.frombuf(block, "utf-8", "surrogateescape")
    except _Cut as error:
        raise ShardUnreadable(f"{shard.uri}: not a tar archive: {error if shard.size else 'empty file'}") from error


@contextmanager
def _cuts() -> Iterator[None]:
    """Turn whatever tarfile, gzip or zlib raise over a damaged archive into _Cut, but never the store's own errors.

    Raises MachineFault for what this machine lacks.
    """
    try:
        yield
    except StoreError:
        raise
    except Exception as error:  # header parsing raises anything: ValueError, IndexError, RecursionError, zlib.error
        if fault := machine_fault(error):
            raise fault from error
        raise _Cut(reason(error)) from error
