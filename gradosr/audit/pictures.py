"""Pictures of rows, read from the archive itself: each shard is opened once and read only as far as necessary.

If a picture cannot be made (its object is gone, replaced, unreadable or gigantic), a placeholder with the reason takes
its place: an audit is useful without its pictures.
"""

import io
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from torch import Tensor

from gradosr.archive.decode import decode
from gradosr.archive.image import MAX_ENCODED, EncodedImage, Fault, too_large
from gradosr.archive.readers import READERS, keys_of
from gradosr.archive.shards import Shard, locate
from gradosr.config import Input
from gradosr.errors import NotFound, ObjectChanged, ShardUnreadable, StoreError, machine_fault
from gradosr.store import Store, StoredObject
from gradosr.store.threads import threads
from gradosr.text import reason as first_words

SIDE, LARGER = 256, 480
"""Pixels of the longer side of a picture: on the page, and exported for labelling."""
LIMIT = 1000
"""Most pictures that are fetched."""
MAX_PIXELS = 50_000_000
"""Most pixels of an image decoded for a picture. That takes 150 MB, and only one image is decoded at a time."""
SECONDS = 600.0
"""Seconds after which no further shard is opened."""
_THREADS = 4
_QUALITY = 82  # JPEG quality; a picture of 256 pixels takes about 12 KB

REASONS = {
    "deleted": "no longer in the archive",
    "changed": "changed since it was scored",
    "unreadable": "its shard could not be read",
    "undecodable": "could not be decoded",
    "too_large": "too large for a picture",
    "not_fetched": "not fetched",
}
"""The kinds of placeholders, described in words."""


@dataclass(frozen=True, slots=True)
class Picture:
    """The picture of a row, or the reason that there is none."""

    id: str
    thumbnail: bytes | None = None
    """JPEG with a longer side of at most SIDE pixels, upright."""
    larger: bytes | None = None
    """JPEG with a longer side of at most LARGER pixels; smaller images are not enlarged."""
    width: int = SIDE
    height: int = SIDE
    """Height of the thumbnail in pixels."""
    kind: str | None = None
    """The kind of placeholder, a key of REASONS; None if there is a picture."""
    reason: str | None = None
    """The reason in detail; it may contain text from the archive."""


@dataclass
class Pictures:
    """The pictures of all requested rows, by row id."""

    by_id: dict[str, Picture] = field(default_factory=dict)
    known: Mapping[str, bytes] = field(default_factory=dict)
    """JPEGs of known images that the document names, by their ids in `known_images`."""

    @property
    def missing(self) -> dict[str, int]:
        """The number of placeholders of each kind, the most frequent first."""
        return dict(Counter(one.kind for one in self.by_id.values() if one.kind).most_common())

    @property
    def shown(self) -> int:
        """The number of rows that have a picture."""
        return sum(1 for one in self.by_id.values() if one.thumbnail)


def rows_of(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the rows shown on the page of an audit.json, each once, the most informative first."""
    groups = document["groups"]["items"]
    shown = [row for group in groups for row in group["typical"]]
    shown += [row for one in document["groups"].get("look_alikes", ()) for row in one["typical"]]
    shown += document["highest"]
    shown += [row for group in groups for row in group["borderline"]]
    return list({row["id"]: row for row in shown}.values())


def fetch(
    store: Store,
    source: Input,
    rows: Iterable[Mapping[str, Any]],
    parts: Collection[str] | None = None,
    *,
    limit: int = LIMIT,
    seconds: float = SECONDS,
    tell: Callable[[int, int], None] = lambda _done, _all: None,
    see: Callable[[str, Tensor], None] | None = None,
) -> Pictures:
    """Fetch the pictures of `rows`, whose order is that of priority; each row has id, key, shard, width and height.

    `source` is the input in the run's fingerprint. If `parts` (the names of the run's parts) is given, a shard that was
    replaced since is recognised; single images are recognised as replaced only if their size changed. `tell` is called
    with the number of shards done and the number of all shards, `see` with the id and the pixels of each image, one at
    a time. No content of the archive makes this function raise.
    """
    wanted = list({row["id"]: row for row in rows}.values())
    found = {row["id"]: _placeholder(row, "not_fetched", f"more than {limit} pictures") for row in wanted[limit:]}
    shards: dict[str, list[Mapping[str, Any]]] = {}
    for row in wanted[:limit]:
        shards.setdefault(row["key"] if keys_of(source.kind) == "path" else row["shard"], []).append(row)
    work = _Work(store, source, parts, time.monotonic() + seconds, see)
    with threads(_THREADS, "pictures") as pool:
        for done, pictures in enumerate(pool.map(work, shards.items()), start=1):
            found.update(pictures)
            tell(done, len(shards))
    return Pictures({row["id"]: found[row["id"]] for row in wanted})


@dataclass
class _Work:
    """A callable that makes the pictures of one shard, from any thread."""

    store: Store
    source: Input
    parts: Collection[str] | None
    until: float
    see: Callable[[str, Tensor], None] | None
    decoding: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, shard: tuple[str, list[Mapping[str, Any]]]) -> dict[str, Picture]:
        name, rows = shard
        found: dict[str, Picture] = {}
        kind, why = "unreadable", "no such image in its shard"
        try:
            waiting = {row["key"]: row for row in rows}
            for image in self._images(name, frozenset(waiting)):
                if row := waiting.get(image.key):
                    with self.decoding:
                        found[row["id"]] = _picture(row, image, self.see)
                if time.monotonic() > self.until:
                    break
            if time.monotonic() > self.until:
                kind, why = "not_fetched", "the time for pictures was over"
        except Exception as error:  # libraries may raise anything on foreign bytes
            kind, why = _kind(error), first_words(machine_fault(error) or error)
        return {row["id"]: found.get(row["id"]) or _placeholder(row, kind, why) for row in rows}

    def _images(self, name: str, keys: frozenset[str]) -> Iterator[EncodedImage]:
        if time.monotonic() > self.until:
            return
        stored = locate(self.source, name, self.store)
        if keys_of(self.source.kind) == "path":
            yield self._single(name, stored)
            return
        shard = Shard(name, stored.uri, stored.version, stored.size)
        if self.parts is not None and shard.part not in self.parts:
            raise ObjectChanged(f"{name}: {REASONS['changed']}")
        yield from READERS[self.source.kind].pick(shard, self.store, self.source, keys)

    def _single(self, key: str, stored: StoredObject) -> EncodedImage:
        if stored.size > MAX_ENCODED:
            return EncodedImage(key, b"", fault=too_large(stored.size))
        with self.store.open(stored) as file:
            return EncodedImage(key, file.read())


def _kind(error: Exception) -> str:
    """Return the kind of placeholder for an error."""
    if machine_fault(error):
        return "not_fetched"
    kinds = {NotFound: "deleted", ObjectChanged: "changed", StoreError: "unreadable", ShardUnreadable: "unreadable"}
    return next((kind for error_type, kind in kinds.items() if isinstance(error, error_type)), "unreadable")


def _placeholder(row: Mapping[str, Any], kind: str, why: str) -> Picture:
    return Picture(row["id"], kind=kind, reason=why)


def _picture(row: Mapping[str, Any], image: EncodedImage, see: Callable[[str, Tensor], None] | None) -> Picture:
    if image.fault:
        return _faulty(row, image.fault)
    decoded = decode(image.data, MAX_PIXELS)
    size = (row.get("width"), row.get("height"))
    if None not in (*size, decoded.width, decoded.height) and size != (decoded.width, decoded.height):
        was = f"was {size[0]} x {size[1]} pixels, is {decoded.width} x {decoded.height}"
        return _placeholder(row, "changed", was)
    if decoded.pixels is None:
        return _faulty(row, decoded.fault or Fault("unsupported", "no pixels"))
    if see:
        see(row["id"], decoded.pixels)
    full = Image.fromarray(decoded.pixels.permute(1, 2, 0).contiguous().numpy())
    larger, thumbnail = _fitted(full, LARGER), _fitted(full, SIDE)
    return Picture(row["id"], _jpeg(thumbnail), _jpeg(larger), *thumbnail.size)


def _faulty(row: Mapping[str, Any], fault: Fault) -> Picture:
    return _placeholder(row, "too_large" if fault.status == "too_large" else "undecodable", fault.error)


def _fitted(image: Image.Image, side: int) -> Image.Image:
    """Return a copy that fits into side x side pixels; a very thin strip keeps at least one pixel."""
    copy = image.copy() if max(image.size) <= side else image.reduce(max(1, max(image.size) // (3 * side)))
    copy.thumbnail((side, side), Image.Resampling.LANCZOS)
    return copy


def _jpeg(image: Image.Image) -> bytes:
    body = io.BytesIO()
    image.save(body, "JPEG", quality=_QUALITY, optimize=True)
    return body.getvalue()
