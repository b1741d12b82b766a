"""Readers: from a shard to its encoded images, in input order. One file per input kind and one line each in READERS."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

from gradosr.archive.groups import Record, Regrouped, list_groups
from gradosr.archive.image import EncodedImage, resolve_names
from gradosr.archive.readers import images, parquet, tar
from gradosr.archive.shards import Shard, list_shards
from gradosr.config import Input
from gradosr.config.inputs import InputSettings
from gradosr.store import Store

Keys = Literal["shard#path", "shard#row", "path"]
"""Forms of a key, which tells where an image lies.

shard#path: name of the shard and path within it; shard#row: name of the shard and row number; path: path of the image
below the input URI, for an image that is an object of its own.
"""
Listed = tuple[list[Shard], Regrouped]
"""Shards of an archive, and what is to be recorded of groups of images before they are read."""


def _one_per_file(
    source: InputSettings, store: Store, _record: Record, passed_over: Counter[str] | None = None
) -> Listed:
    return list_shards(source, store, passed_over), Regrouped()


class Reader(NamedTuple):
    """Everything the program needs to know about one input kind beside its settings (see gradosr.config.inputs)."""

    read: Callable[[Shard, Store, Any, tuple[str, ...] | None], Iterator[EncodedImage]]
    """Function (shard, store, settings of the input, names of integer labels) -> images of the shard, in order.

    An iterator that passes over files that are no images returns (as generators do) their number by kind.
    Raises ShardUnreadable if the content can never be read, and passes every StoreError on unchanged.
    """
    pick: Callable[[Shard, Store, Any, frozenset[str]], Iterator[EncodedImage]]
    """Function (shard, store, settings of the input, keys) -> images with these keys, in order and without labels.

    Reads no more than it needs to find them; keys that do not exist give nothing. Raises the same errors as `read`.
    """
    check: Callable[[Shard, Store, Any], None]
    """Function (shard, store, settings of the input) that raises InputError if the settings do not fit the shard.

    `read` raises ShardUnreadable in the same case. A damaged shard is accepted here, as it says nothing about settings.
    """
    images_in: Callable[[Shard, Store, Any], int]
    """Function (shard, store, settings of the input) -> number of images, which may be estimated for a large shard.

    Raises the same errors as `read`.
    """
    find: Callable[[Any, Store, Record, Counter[str] | None], Listed] = _one_per_file
    """Function (settings of the input, store, groups on record, counts) -> shards, and what is to be recorded.

    By default, each file with one of the suffixes of the input is a shard; `list_groups` makes one shard of each
    `group_size` files instead, which are single images. What else is there is added to the counts, by kind.
    Raises InputError if there are no shards.
    """
    keys: Keys = "shard#path"
    """Form of the keys of the images. With "path", a shard is a group of objects, one for each image."""


READERS = {
    "parquet": Reader(parquet.read, parquet.pick, parquet.check, parquet.images_in, keys="shard#row"),
    "tar": Reader(tar.read, tar.pick, tar.check, tar.images_in),
    "images": Reader(images.read, images.pick, images.check, images.images_in, find=list_groups, keys="path"),
}
"""Readers by input kind."""


def keys_of(kind: str) -> Keys:
    """Return the form of the keys of an input kind; for a kind without a reader here, the usual one."""
    return READERS[kind].keys if kind in READERS else "shard#path"


def every_image(source: Input, store: Store) -> Iterator[EncodedImage]:
    """Read all images of an input, shard after shard, in this process. Raises what find, check and read raise."""
    names = resolve_names(source.label_names, store)
    reader = READERS[source.kind]
    shards, _groups = reader.find(source, store, Record(), None)
    reader.check(shards[0], store, source)
    for shard in shards:
        yield from reader.read(shard, store, source, names)
