"""A single image of an archive, not yet decoded, or the reason that there is none."""

import json
from dataclasses import dataclass
from typing import NamedTuple

from PIL import features

from gradosr.errors import InputError, MachineFault
from gradosr.store import Store

DECODER = "torchvision.io+pillow/2"
"""Version of the decoding, part of a run's fingerprint; it increases when the same bytes give other pixels."""
_OPTIONAL = ("avif", "webp", "jpg_2000", "libtiff", "zlib", "jpg")
"""Formats that a Pillow may have been built without."""

MAX_ENCODED = 256 * 2**20
"""Bytes above which an encoded image is not read into memory."""


class Fault(NamedTuple):
    """The reason that an image has no score: a status of the result schema, and a text."""

    status: str
    error: str


EMPTY = Fault("empty", "no bytes")


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """An image of a shard, not yet decoded."""

    key: str
    data: bytes
    label: str | None = None
    source: str | None = None
    """Path stored in a Parquet row."""
    fault: Fault | None = None
    """Fault found by the reader, if it already knows that the image is not usable."""


def decoder() -> str:
    """Return the version of the decoding, and what the Pillow installed here cannot decode."""
    supported = features.get_supported()
    missing = [name for name in _OPTIONAL if name not in supported]
    return f"{DECODER} without {', '.join(missing)}" if missing else DECODER


def check_decoder(expected: str) -> None:
    """Raise MachineFault if this machine decodes other images than the run's fingerprint says."""
    if expected != (ours := decoder()):
        raise MachineFault(
            f"decoder here is {ours}, of the run {expected}: install the same Pillow and gradosr everywhere"
        )


def too_large(size: int) -> Fault:
    """Return the fault of an image with too many encoded bytes."""
    return Fault("too_large", f"{size} encoded bytes are more than {MAX_ENCODED}")


def label_of(text: str | None, label_names: tuple[str, ...] | None) -> str | None:
    """Return the label as it is or, if it is an index into `label_names`, the name at that index."""
    if text and label_names and text.isdecimal() and len(text) < 10 and int(text) < len(label_names):
        return label_names[int(text)]
    return text


def resolve_names(names: str | tuple[str, ...] | None, store: Store) -> tuple[str, ...] | None:
    """Return a list of names as it is, or read it from a URI as JSON. Raises InputError if it is no list of strings."""
    if not isinstance(names, str):
        return names
    try:
        found = json.loads(store.read(names))
    except ValueError as error:  # not JSON, or not UTF-8
        raise InputError(f"{names}: not a JSON list of names: {error}") from error
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise InputError(f"{names}: not a JSON list of names, each a string")
    return tuple(found)
