"""From a shard to its encoded images, in input order. One variant per file, one line each in READERS."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from gradosr.config import ImagesInput, Input
from gradosr.errors import InputError
from gradosr.shards import Shard, list_groups, list_shards
from gradosr.store import Store

MAX_ENCODED = 256 * 2**20
"""Bytes of one encoded image beyond which it is not read into memory."""


class Fault(NamedTuple):
    """Why an image has no score: a status of the result schema, and the reason as text."""

    status: str
    error: str


EMPTY = Fault("empty", "no bytes")


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """One image member of a shard, not decoded yet."""

    key: str
    data: bytes
    label: str | None = None
    source: str | None = None
    """The path a Parquet row carries."""
    fault: Fault | None = None
    """Set when the reader already knows that no image can be had."""


class Reader(NamedTuple):
    """One kind of input."""

    read: Callable[[Shard, Store, Any, tuple[str, ...] | None], Iterator[EncodedImage]]
    """(shard, store, the input's settings, names of integer labels) -> the shard's images, in order.

    Raises ShardUnreadable when the content can never be read, and passes every StoreError on as it is.
    """
    pick: Callable[[Shard, Store, Any, frozenset[str]], Iterator[EncodedImage]]
    """(shard, store, the input's settings, keys) -> the images of these keys, in order and without labels.

    Reads what leads to them and no more; keys that are not there give nothing. Raises as `read` does.
    """
    check: Callable[[Shard, Store, Any], None]
    """(shard, store, the input's settings): raises InputError when they do not fit, as read would ShardUnreadable."""
    images_in: Callable[[Shard, Store, Any], int]
    """(shard, store, the input's settings) -> how many images it holds: of a large tar what its beginning suggests.

    Raises as `read` does.
    """


def too_large(size: int) -> Fault:
    """The fault of an image whose encoded bytes are too many."""
    return Fault("too_large", f"{size} encoded bytes are more than {MAX_ENCODED}")


def reason(error: Exception) -> str:
    """What a foreign library said of some content: one printable line of at most 200 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return "".join(character if character.isprintable() else "?" for character in text)[:200]


def label_of(text: str | None, label_names: tuple[str, ...] | None) -> str | None:
    """The label as it stands, or where it spells an index into `label_names`, the name there."""
    if text and label_names and text.isdecimal() and len(text) < 10 and int(text) < len(label_names):
        return label_names[int(text)]
    return text


def resolve_names(names: str | tuple[str, ...] | None, store: Store) -> tuple[str, ...] | None:
    """A list of names as it is, or the JSON list at a URI. Raises InputError when it is not a list of strings."""
    if not isinstance(names, str):
        return names
    try:
        found = json.loads(store.read(names))
    except ValueError as error:  # not JSON, or not UTF-8
        raise InputError(f"{names}: not a JSON list of names: {error}") from error
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise InputError(f"{names}: not a JSON list of names, each a string")
    return tuple(found)


from gradosr.readers import images, parquet, tar  # noqa: E402 - they are made of the names above

READERS = {
    "parquet": Reader(parquet.read, parquet.pick, parquet.check, parquet.images_in),
    "tar": Reader(tar.read, tar.pick, tar.check, tar.images_in),
    "images": Reader(images.read, images.pick, images.check, images.images_in),
}
"""By input kind."""


def every_image(source: Input, store: Store) -> Iterator[EncodedImage]:
    """All images of an input, shard after shard, in this process. Raises what listing, check and read raise."""
    names = resolve_names(source.label_names, store)
    shards = list_groups(source, store, [])[0] if isinstance(source, ImagesInput) else list_shards(source, store)
    reader = READERS[source.kind]
    reader.check(shards[0], store, source)
    for shard in shards:
        yield from reader.read(shard, store, source, names)
