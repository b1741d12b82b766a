"""Reader of WebDataset tar files with one row per image member; one sample at a time is held in memory."""

import re
import tarfile
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from typing import BinaryIO, NamedTuple

from gradosr.archive.image import EMPTY, MAX_ENCODED, EncodedImage, Fault, label_of, too_large
from gradosr.archive.names import APPLE_DOUBLE, count, is_apple_double, kind_of
from gradosr.archive.readers.compressed import decompressed
from gradosr.archive.readers.tar_links import Links
from gradosr.archive.readers.tar_members import Cut, check_first_block, content, cuts, members, name_of
from gradosr.archive.shards import IMAGE_SUFFIXES, Shard, as_text
from gradosr.config import TarInput
from gradosr.errors import ShardUnreadable
from gradosr.store import Store
from gradosr.text import printable

_MAX_SAMPLE = 64 * 2**20  # bytes of images kept back until their sample's label comes
_MAX_LABEL = 4096  # bytes; of a longer one the beginning counts
_MAX_NAME = 4096  # letters; Linux has no longer paths
_HEAD = 8 * 2**20  # bytes that tell how many images there are in the rest
_SPECIAL = "special file"
_APART = "cls apart from their images"
_LOST = "cls that cannot be read"


def read(
    shard: Shard, store: Store, _source: TarInput, label_names: tuple[str, ...] | None
) -> Generator[EncodedImage, None, Counter[str]]:
    """Read the image members in archive order, followed by one `truncated` row if the archive breaks off.

    The label is the text of `KEY.cls` in the same sample: a run of images and labels whose names agree up to the first
    dot of the last path step, whatever else lies between, up to a name that comes again. Keys are SHARD#MEMBER; a
    repeated name gets #2, #3 and so on appended. A link is an image like any other, with the content it leads to. All
    other members are counted by kind, as are labels that belong to no image.
    Raises ShardUnreadable if the file is not a tar archive at all.
    """
    passed_over = Counter[str]()
    with _opened(shard, store) as archive:
        yield from _images(shard, _entries(archive, passed_over), label_names, passed_over)
    return passed_over


def pick(shard: Shard, store: Store, _source: TarInput, keys: frozenset[str]) -> Iterator[EncodedImage]:
    """Read the members with these keys; for all others up to the last of them, only the headers are read."""
    names = {_NUMBER.sub("", key) for key in keys} | keys  # a name may come again, or end so by itself
    times: dict[str, int] = {}
    left = set(keys)
    with _opened(shard, store) as archive:
        for entry in _entries(archive, Counter(), lambda name: f"{shard.name}#{name}" in names):
            if _is_label(entry.name):
                continue
            key = _unique(f"{shard.name}#{entry.name}", times)
            if key in left:
                left.remove(key)
                yield EncodedImage(key, entry.data, fault=entry.fault or (None if entry.data else EMPTY))
            if not left:
                return


_NUMBER = re.compile(r"#[0-9]+\Z")


class _Archive(NamedTuple):
    file: BinaryIO
    """Bytes as they are stored."""
    stream: BinaryIO
    """Bytes of the tar file."""
    links: Links


@contextmanager
def _opened(shard: Shard, store: Store) -> Iterator[_Archive]:
    with store.open(shard.stored) as file, Links(lambda: store.open(shard.stored), shard.uri) as links:
        try:
            with cuts():
                stream = decompressed(file, shard.uri)
            check_first_block(stream)
        except Cut as error:
            raise ShardUnreadable(f"{shard.uri}: not a tar archive: {error if shard.size else 'empty file'}") from error
        yield _Archive(file, stream, links)


def check(_shard: Shard, _store: Store, _source: TarInput) -> None:
    """Accept any file: no setting depends on what a tar archive contains."""


def images_in(shard: Shard, store: Store, _source: TarInput) -> int:
    """Count the image headers; for an archive larger than _HEAD bytes, extrapolate from its beginning."""
    images = 0
    with _opened(shard, store) as archive:
        for entry in _entries(archive, Counter(), lambda _: False):
            images += not _is_label(entry.name)
            if archive.file.tell() > _HEAD:
                return round(images * shard.size / archive.file.tell())
    return images


class _Entry(NamedTuple):
    name: str
    data: bytes
    fault: Fault | None = None


def _images(
    shard: Shard, entries: Iterator[_Entry], label_names: tuple[str, ...] | None, passed_over: Counter[str]
) -> Iterator[EncodedImage]:
    times: dict[str, int] = {}
    for _, sample in groupby(entries, _sample_numbers()):
        waiting: list[EncodedImage] = []  # images of this sample, as long as its label is not known
        label, held, missed, lost = None, 0, False, False  # lost: a label that an image, or every image, did without
        for entry in sample:
            if entry.fault is None and _is_label(entry.name):
                count(_APART, passed_over, lost)  # of the label before, which this one replaces
                label = label_of(entry.data.decode(errors="backslashreplace").strip() or None, label_names)
                lost = label is not None and (missed or not waiting)
                yield from (replace(image, label=label) for image in waiting)
                waiting, held = [], 0
                continue
            key = _unique(f"{shard.name}#{entry.name}", times)
            waiting.append(EncodedImage(key, entry.data, label, fault=entry.fault or (None if entry.data else EMPTY)))
            held += len(entry.data)
            if label is not None or held > _MAX_SAMPLE:
                lost, missed = lost and missed, missed or label is None
                yield from waiting
                waiting, held = [], 0
        yield from waiting
        count(_APART, passed_over, lost)


def _sample_numbers() -> Callable[[_Entry], int]:
    """Return a function that numbers samples, given their members in order; a name that comes again begins another."""
    key, names, number = "", set[str](), 0

    def number_of(entry: _Entry) -> int:
        nonlocal key, number
        if (other := _key(entry.name)) != key or entry.name in names:
            key, number = other, number + 1
            names.clear()
        names.add(entry.name)
        return number

    return number_of


def _key(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _is_label(name: str) -> bool:
    return name.removeprefix(_key(name)).lower() == ".cls"


def _unique(name: str, times: dict[str, int]) -> str:
    key = name
    while key in times:
        times[name] += 1
        key = f"{name}#{times[name]}"
    times[key] = 1
    return key


def _entries(
    archive: _Archive, passed_over: Counter[str], wanted: Callable[[str], bool] = lambda _: True
) -> Iterator[_Entry]:
    """Read images and labels in archive order; if the archive is cut, a last entry holds the fault.

    The content of members whose names are not `wanted` is not read.
    """
    reading = ""  # the member whose bytes are being read
    try:
        for member in members(archive.stream):
            name = name_of(member)
            if member.isdir():
                continue
            if kind := _other_kind(name, member):
                count(kind, passed_over)
                continue
            if not wanted(name[:_MAX_NAME]):
                yield _Entry(name[:_MAX_NAME], b"")
                continue
            reading = name
            entry = _entry(archive, name, member, _MAX_LABEL if _is_label(name) else MAX_ENCODED)
            reading = ""
            if entry.fault and _is_label(name):
                count(_LOST, passed_over)
            else:
                yield entry
    except Cut as cut:
        yield _Entry(reading or "truncated", b"", Fault("truncated", f"archive cut or damaged: {cut}"))


def _other_kind(name: str, member: tarfile.TarInfo) -> str:
    """Return the kind by which a member is counted that is neither an image nor a label; "" for these two."""
    if not (member.isreg() or member.islnk() or member.issym()):
        return _SPECIAL
    if is_apple_double(name):
        return APPLE_DOUBLE
    if name.lower().endswith(IMAGE_SUFFIXES) or _is_label(name):
        return ""
    return _APART if name.lower().endswith(".cls") else kind_of(name)  # A.B.CLS, whose key A says nothing of A.B.PNG


def _entry(archive: _Archive, name: str, member: tarfile.TarInfo, limit: int) -> _Entry:
    if not member.isreg():
        return _linked(archive.links, name, member, limit)
    if fault := _refusal(name, member.size, sparse=member.issparse()):
        return _Entry(name[:_MAX_NAME], b"", fault)
    return _Entry(name, content(archive.stream, member.offset_data, min(member.size, limit)))


def _linked(links: Links, name: str, member: tarfile.TarInfo, limit: int) -> _Entry:
    """Read the file that a link leads to."""
    target = links.follow(name, member)
    if target is None:
        kind, where = "symbolic" if member.issym() else "hard", printable(as_text(member.linkname))[:100]
        fault: Fault | None = Fault("unsupported", f"a {kind} link to {where}, which is no file of {links.searched}")
    elif not (fault := _refusal(name, target.size, sparse=target.sparse)):
        try:
            return _Entry(name, links.read(target, limit))
        except Cut as cut:
            where = f"a link to {target.name[:100]}, which is cut or damaged in {links.searched}"
            fault = Fault("truncated", f"{where}: {cut}")
    return _Entry(name[:_MAX_NAME], b"", fault)


def _refusal(name: str, size: int, *, sparse: bool) -> Fault | None:
    """Tell why a member must not be read; None if it may. Names are limited, as they stay in memory with the shard."""
    if sparse:
        return Fault("unsupported", "a sparse tar member")
    if len(name) > _MAX_NAME:
        return Fault("unsupported", f"a name of {len(name)} letters is longer than {_MAX_NAME}")
    return too_large(size) if size > MAX_ENCODED and not _is_label(name) else None
