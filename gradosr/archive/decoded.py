"""All images of an input, decoded; pixels are kept between several readings as far as memory allows."""

from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain

import torch

from gradosr.archive.image import EncodedImage
from gradosr.archive.loading import PreparedImage, prepared_batches
from gradosr.archive.readers import every_image
from gradosr.config import Input, TransformSettings
from gradosr.store import Store

BATCH = 128


class DecodedImages:
    """A reader of inputs that keeps up to `most` bytes of pixels for the next reading with the same transform."""

    def __init__(self, store: Store, most: int = 0) -> None:
        self._store, self._left = store, most
        self._kept: dict[tuple[Input, TransformSettings, int], dict[str, PreparedImage]] = {}

    def read(
        self, source: Input, transform: TransformSettings, max_pixels: int, takes: Callable[[EncodedImage], bool]
    ) -> Iterator[PreparedImage]:
        """Yield, in input order, the images that `takes` accepts; it is called before an image is decoded.

        Raises the errors of listing and reading.
        """
        kept = self._kept.setdefault((source, transform, max_pixels), {})
        wanted: deque[str] = deque()

        def missing() -> Iterator[EncodedImage]:
            for encoded in every_image(source, self._store):
                if takes(encoded):
                    wanted.append(encoded.key)
                    if encoded.key not in kept:
                        yield encoded

        batches = prepared_batches(missing(), transform, max_pixels, BATCH, torch.get_num_threads())
        for image in chain.from_iterable(batches):
            while (key := wanted.popleft()) != image.encoded.key:
                yield kept[key]
            self._keep(kept, image)
            yield image
        yield from (kept[key] for key in wanted)

    def _keep(self, kept: dict[str, PreparedImage], image: PreparedImage) -> None:
        size = 0 if image.pixels is None else image.pixels.nbytes
        if 0 < size <= self._left:
            self._left -= size
            kept[image.encoded.key] = image
