"""From a shard to its encoded images, in input order. One variant per file, one line each in READERS."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from gradosr.archive.image import EncodedImage, resolve_names
from gradosr.archive.readers import images, parquet, tar
from gradosr.archive.shards import Shard, list_groups, list_shards
from gradosr.config import ImagesInput, Input
from gradosr.store import Store


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
