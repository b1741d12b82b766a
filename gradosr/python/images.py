"""Images of every form that Python has them in, prepared for a classifier."""

import os
from collections.abc import Iterable, Iterator
from itertools import islice, repeat
from pathlib import Path
from typing import Any, Union

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from gradosr.archive.decode import rgb, to_input_size
from gradosr.archive.image import EncodedImage
from gradosr.archive.kinds import source_at
from gradosr.archive.loading import PreparedImage, decoding_threads, prepare
from gradosr.archive.readers import every_image
from gradosr.config import MAX_PIXELS, ImagesInput, ParquetInput, TarInput, TransformSettings
from gradosr.store import Store

ImageLike = Union[Image.Image, str, "os.PathLike[str]", bytes, NDArray[Any], Tensor]
"""An image: opened by Pillow, a path or URI, encoded bytes, or pixels [H, W, 3] (a tensor: [3, H, W])."""
_INPUTS = {"tar": TarInput, "parquet": ParquetInput, "images": ImagesInput}


def prepared_batches(
    images: "ImageLike | Iterable[ImageLike]", transform: TransformSettings, store: Store, size: int
) -> Iterator[list[PreparedImage]]:
    """Yield batches of `size` images, prepared on threads.

    Raises TypeError or ValueError for what is no image, StoreError for a file that cannot be read.
    """
    try:
        given: Iterator[ImageLike | EncodedImage] = iter([images] if _is_one(images) else images)  # type: ignore
    except TypeError as error:
        what = f"{type(images).__name__} is no image, path, bytes, array or tensor, nor several of them"
        raise TypeError(f"images: {what}") from error
    if isinstance(images, str | os.PathLike) and (found := _found(os.fspath(images), store)) is not None:
        given = iter(found)
    with decoding_threads(torch.get_num_threads()) as pool:
        number = 0
        while ahead := list(islice(given, size)):
            numbers = range(number, number + len(ahead))
            yield list(pool.map(_prepare, numbers, ahead, repeat(transform), repeat(store)))
            number += len(ahead)


def _found(place: str, store: Store) -> Iterator[EncodedImage] | None:
    """Return the images of a folder, a pattern or an archive; None for a single image."""
    archive = place.lower().endswith((*TarInput.suffixes, *ParquetInput.suffixes))
    if not archive and (Path(place).is_file() or ("://" in place and place.lower().endswith(ImagesInput.suffixes))):
        return None
    source = source_at(place, store)
    return every_image(_INPUTS[source["kind"]](**source), store)


def _prepare(
    number: int, image: "ImageLike | EncodedImage", transform: TransformSettings, store: Store
) -> PreparedImage:
    if isinstance(image, EncodedImage):
        return prepare(image, transform, MAX_PIXELS)
    if isinstance(image, str | os.PathLike):
        place = os.fspath(image)
        return prepare(EncodedImage(place, store.read(place)), transform, MAX_PIXELS)
    if isinstance(image, bytes):
        return prepare(EncodedImage(str(number), image), transform, MAX_PIXELS)
    pixels = _pixels(image, number)
    bare = EncodedImage(str(number), b"")
    return PreparedImage(bare, pixels.shape[2], pixels.shape[1], to_input_size(pixels, transform), None)


def _is_one(images: Any) -> bool:
    if isinstance(images, np.ndarray | Tensor):
        return images.ndim < 4
    return isinstance(images, Image.Image | str | os.PathLike | bytes)


def _pixels(image: Any, number: int) -> Tensor:
    """Return pixels as uint8 [3, H, W]. Raises TypeError or ValueError for what is no image."""
    if isinstance(image, Image.Image):
        pixels = torch.from_numpy(rgb(ImageOps.exif_transpose(image) or image)).permute(2, 0, 1)
        return pixels.contiguous()
    if isinstance(image, Tensor):
        pixels = image.detach().cpu()
        pixels = pixels[None] if pixels.ndim == 2 else pixels
    elif isinstance(image, np.ndarray):
        pixels = torch.from_numpy(np.array(image))  # a copy: torch warns of arrays that are read-only
        pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1) if pixels.ndim == 3 else pixels
    else:
        raise TypeError(f"image {number}: {type(image).__name__} is no image, path, bytes, array or tensor")
    form = "[height, width, 3]" if isinstance(image, np.ndarray) else "[3, height, width]"
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3, 4) or not pixels.numel():
        raise ValueError(f"image {number}: shape {list(image.shape)}; expected {form}, or grey or with alpha")
    if pixels.is_floating_point():
        if not (pixels.min() >= 0 and pixels.max() <= 1):
            raise ValueError(f"image {number}: values beyond 0..1; give pixels as they are before they are normalised")
        pixels = (pixels * 255).round().to(torch.uint8)
    if pixels.dtype != torch.uint8:
        raise ValueError(f"image {number}: {pixels.dtype}; expected uint8, or floating-point values in 0..1")
    return pixels.expand(3, -1, -1).contiguous() if pixels.shape[0] == 1 else pixels[:3].contiguous()
