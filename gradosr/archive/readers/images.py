"""Reader of single image files: a shard is a recorded group of them, and several are fetched at a time."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future

from gradosr.archive.image import EMPTY, MAX_ENCODED, EncodedImage, label_of, too_large
from gradosr.archive.pieces import members
from gradosr.archive.shards import Shard, as_text
from gradosr.config import ImagesInput
from gradosr.store import Store, StoredObject
from gradosr.store.threads import threads

_THREADS = 8  # an object store answers in tens of milliseconds whatever the size; one at a time would wait for each
_AHEAD = 16  # images fetched or being fetched before they are asked for


def read(
    shard: Shard, store: Store, _source: ImagesInput, label_names: tuple[str, ...] | None
) -> Iterator[EncodedImage]:
    """Read the group's images in order.

    The key of an image is its path below the input URI, its label the folder it lies in; an image directly at the URI
    has no label. Raises ObjectChanged if an image was replaced or removed since it was listed.
    """
    yield from _read(shard, members(shard, store), store, label_names)


def _read(
    shard: Shard, listed: Iterable[StoredObject], store: Store, label_names: tuple[str, ...] | None
) -> Iterator[EncodedImage]:
    folder = shard.uri.rpartition("#")[0]
    running: deque[tuple[StoredObject, Future[bytes]]] = deque()

    def next_image() -> EncodedImage:
        member, fetched = running.popleft()
        return _image(member, fetched.result(), as_text(member.uri.removeprefix(folder)), label_names)

    with threads(_THREADS, "fetch") as pool:
        for member in listed:
            running.append((member, pool.submit(_fetch, store, member)))
            if len(running) == _AHEAD:
                yield next_image()
        while running:
            yield next_image()


def pick(shard: Shard, store: Store, _source: ImagesInput, keys: frozenset[str]) -> Iterator[EncodedImage]:
    """Read the images with these keys."""
    folder = shard.uri.rpartition("#")[0]
    chosen = [member for member in members(shard, store) if as_text(member.uri.removeprefix(folder)) in keys]
    return _read(shard, chosen, store, None)


def check(_shard: Shard, _store: Store, _source: ImagesInput) -> None:
    """Accept any group: no setting depends on what image files contain."""


def images_in(shard: Shard, store: Store, _source: ImagesInput) -> int:
    """Return the number of images in the group."""
    return len(members(shard, store))


def _fetch(store: Store, member: StoredObject) -> bytes:
    if member.size > MAX_ENCODED:
        return b""
    with store.open(member) as file:
        return file.read()


def _image(member: StoredObject, data: bytes, name: str, label_names: tuple[str, ...] | None) -> EncodedImage:
    fault = too_large(member.size) if member.size > MAX_ENCODED else None if data else EMPTY
    folder = name.rpartition("/")[0].rpartition("/")[2]
    return EncodedImage(name, data, label_of(folder or None, label_names), fault=fault)
