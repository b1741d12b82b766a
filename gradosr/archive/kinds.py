"""The kind of input that a URI stands for, by the names of what lies there; no file is opened."""

from collections import Counter
from collections.abc import Sequence
from itertools import islice
from typing import Any

from gradosr.archive.shards import check_found
from gradosr.config import ImagesInput, ParquetInput, StoreFields, TarInput
from gradosr.config.inputs import InputSettings
from gradosr.config.settings import load_settings
from gradosr.config.uris import absolute
from gradosr.errors import ConfigError, InputError, NotFound
from gradosr.store import Store, join

KINDS: tuple[type[InputSettings], ...] = (TarInput, ParquetInput, ImagesInput)
LOOKED_AT = 1000
"""Most names that are looked at in a folder; the kind that most of them have is taken."""


def store_of(overrides: Sequence[str]) -> Store:
    """Return the store that --set store.KEY=VALUE configures, for a look around before there is a job."""
    ours = [one for one in overrides if one.partition("=")[0].partition(".")[0] in StoreFields.model_fields]
    fields = load_settings(StoreFields, "", "--set", ours)
    return Store(fields.store, fields.stores)


def source_at(uri: str, store: Store) -> dict[str, Any]:
    """Return the settings of an input, kind and URI.

    Raises InputError if nothing there can be read, NotFound, or ConfigError for what is no URI.
    """
    try:
        uri = absolute(uri)
    except ValueError as error:
        raise ConfigError(f"images: {error}") from error
    kind = _by_ending(uri) or _by_content(uri, store)
    source = kind.model_fields["kind"].default
    check_found(kind(kind=source, uri=uri), store)
    return {"kind": source, "uri": uri}


def _by_ending(uri: str) -> type[InputSettings] | None:
    name = uri.lower().rstrip("/")
    return next((kind for kind in KINDS if name.endswith(kind.suffixes)), None)


def _by_content(uri: str, store: Store) -> type[InputSettings]:
    if store.exists(uri):
        raise InputError(
            f"{uri}: by its name no image, tar or Parquet file; of an archive of another kind, name the "
            "folder that it was unpacked to"
        )
    names = (stored.uri.lower() for stored in islice(store.list(join(uri, "")), LOOKED_AT))
    found = Counter(kind for name in names if (kind := _by_ending(name)))
    if not found:
        raise InputError(f"{uri}: no images there, nor tar or Parquet files")
    return found.most_common(1)[0][0]


def class_folders(uri: str, store: Store) -> tuple[str, ...]:
    """Return the names of the folders in a folder of images, sorted as torchvision's ImageFolder numbers classes."""
    try:
        return tuple(sorted(name for name in store.folders(join(uri, "")) if not name.startswith((".", "__MACOSX"))))
    except NotFound:
        return ()
