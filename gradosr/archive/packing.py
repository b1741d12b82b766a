"""Packing of images into WebDataset tar shards: `KEY.jpg` beside `KEY.cls`, with keys from the image's path or row."""

import io
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import PurePosixPath

from gradosr.archive.image import EncodedImage
from gradosr.archive.readers import every_image
from gradosr.config import PackJob
from gradosr.store import Store, join

_FORMATS = ((b"\xff\xd8\xff", ".jpg"), (b"\x89PNG", ".png"), (b"GIF8", ".gif"), (b"BM", ".bmp"), (b"RIFF", ".webp"))


def pack_shards(job: PackJob, step: Callable[[str], object]) -> dict[str, int]:
    """Write shards of `images_per_shard` images, copied unchanged; return the numbers of images and shards."""
    store = Store(job.store, job.stores)
    images, counts, times = every_image(job.input, store), Counter[str](), Counter[str]()
    while batch := list(islice(images, job.images_per_shard)):
        name = f"{counts['shards']:05}.tar"
        store.write(join(job.output, name), _tar(batch, times))
        counts.update(shards=1, images=len(batch))
        step(f"packed {counts['images']:,} images into {counts['shards']} shards")
    return {"images": counts["images"], "shards": counts["shards"]}


def _tar(images: Iterable[EncodedImage], times: Counter[str]) -> bytes:
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w") as archive:
        for image in images:
            key, suffix = _member(image, times)
            _add(archive, key + suffix, image.data)
            if image.label is not None:
                _add(archive, f"{key}.cls", image.label.encode())
    return body.getvalue()


def _member(image: EncodedImage, times: Counter[str]) -> tuple[str, str]:
    """Return an image's member name as key and suffix.

    A WebDataset key ends at the first dot, so dots inside a name become underscores.
    """
    path = PurePosixPath(image.source or image.key.replace("#", "-"))
    suffix = next((suffix for magic, suffix in _FORMATS if image.data.startswith(magic)), path.suffix or ".bin")
    stem = re.sub(r"[.\s]+", "_", path.stem) or "image"
    key = str(path.parent / stem).lstrip("/").replace("..", "__")
    times[key] += 1
    return (key if times[key] == 1 else f"{key}_{times[key]}"), suffix


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))
