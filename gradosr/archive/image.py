"""One image of an archive, not decoded yet, or why there is none."""

import json
from dataclasses import dataclass
from typing import NamedTuple

from gradosr.errors import InputError
from gradosr.store import Store

DECODER = "torchvision.io+pillow/1"
"""How images become pixels: part of a run's fingerprint, counted up when the same bytes give other pixels."""

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


def too_large(size: int) -> Fault:
    """The fault of an image whose encoded bytes are too many."""
    return Fault("too_large", f"{size} encoded bytes are more than {MAX_ENCODED}")


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
