"""Packing of images into WebDataset tar shards: `KEY.jpg` beside `KEY.cls`, with keys from the image's path or row."""

import io
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import islice

from gradosr.archive.image import EMPTY, EncodedImage
from gradosr.archive.readers import every_image
from gradosr.archive.shards import IMAGE_SUFFIXES
from gradosr.config import PackJob
from gradosr.errors import InputError
from gradosr.store import Store, join
from gradosr.text import plural

_FORMATS = tuple(
    (re.compile(magic, re.DOTALL), suffix)
    for magic, suffix in (
        *((rb"\xff\xd8\xff", ".jpg"), (rb"\x89PNG", ".png"), (rb"GIF8", ".gif"), (rb"BM", ".bmp")),
        *((rb"RIFF....WEBP", ".webp"), (rb"II[*+]\0|MM\0[*+]", ".tif"), (rb"P[14]\s", ".pbm"), (rb"P[25]\s", ".pgm")),
        *((rb"P[36]\s", ".ppm"), (rb"\0\0\0\x0cjP  ", ".jp2"), (rb"\xff\x4f\xff\x51", ".j2k")),
        *((rb"....ftypavi[fs]", ".avif"), (rb"....ftyp(hei[cxms]|hev[cx]|mif1|msf1)", ".heic")),
    )
)
_MAX_STEP, _MAX_STEPS = 200, 10  # letters of a step and steps of a key: what file systems and readers take
_MAX_LABEL = 4096  # bytes that the reader takes


def pack_shards(job: PackJob, step: Callable[[str], object]) -> dict[str, int]:
    """Write shards of `images_per_shard` images, copied unchanged; return the numbers of images and shards.

    Raises InputError for an image or label that would not be read back as it is.
    """
    store = Store(job.store, job.stores)
    images, counts, names = every_image(job.input, store), Counter[str](), _Names()
    while batch := list(islice(images, job.images_per_shard)):
        name = f"{counts['shards']:05}.tar"
        store.write(join(job.output, name), _tar(batch, names))
        counts.update(shards=1, images=len(batch))
        step(f"packed {plural(counts['images'], 'image')} into {plural(counts['shards'], 'shard')}")
    return {"images": counts["images"], "shards": counts["shards"]}


def _tar(images: Iterable[EncodedImage], names: "_Names") -> bytes:
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w") as archive:
        for image in images:
            if image.fault and image.fault.status != EMPTY.status:
                raise InputError(f"{image.key}: {image.fault.error}; without its bytes it cannot be packed")
            key, suffix = _member(image, names)
            _add(archive, key + suffix, image.data)
            if image.label:
                _add(archive, f"{key}.cls", _encoded_label(image.key, image.label))
    return body.getvalue()


def _encoded_label(key: str, label: str) -> bytes:
    """Return the content of a label file. Raises InputError if it would be read back as another label."""
    data = label.encode()
    if len(data) > _MAX_LABEL or label.strip() != label:
        text = "a .cls file holds none with spaces around it, or of more than"
        raise InputError(f"{key}: the label {label[:60]!r}: {text} {_MAX_LABEL} bytes")
    return data


class _Names:
    """Names given so far, each of them once."""

    def __init__(self) -> None:
        self._taken = set[str]()
        self._times = Counter[str]()

    def unique(self, name: str) -> str:
        """Return the name, or the first of NAME_2, NAME_3 and so on that is not taken yet."""
        found = name
        while found in self._taken:
            self._times[name] += 1
            found = f"{name}_{self._times[name] + 1}"
        self._taken.add(found)
        return found


def _member(image: EncodedImage, names: _Names) -> tuple[str, str]:
    """Return an image's member name as key and suffix.

    The suffix is one that is read back, the content's own where it is known. A WebDataset key ends at the first dot, so
    dots inside a name become underscores; so does what a tar header cannot hold, and what marks metadata in a tar: a
    step that begins with a dot or two underscores.
    """
    *folders, last = (image.source or image.key.replace("#", "-")).replace("\\", "/").split("/")
    own = next((suffix for suffix in IMAGE_SUFFIXES if last.lower().endswith(suffix)), "")
    suffix = next((suffix for magic, suffix in _FORMATS if magic.match(image.data)), own or ".jpg")
    stem = re.sub(r"[.\s]+", "_", last[: len(last) - len(own)])
    steps = [_step(folder) for folder in folders if folder not in ("", ".")]
    return names.unique("/".join([*steps[1 - _MAX_STEPS :], _step(stem) or "image"])), suffix


def _step(name: str) -> str:
    printable = "".join(letter if letter.isprintable() else "_" for letter in name)
    return re.sub(r"\A[._]{2,}|\A\.", "_", printable)[:_MAX_STEP]


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))
