"""A search, without torch, for the parts of a classifier that a config names: code of its own, or a model folder."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gradosr.config import FOLDER, LIBRARIES
from gradosr.errors import ClassifierError, ConfigError, NotFound
from gradosr.store import Store, join

CONFIG = "config.json"


def import_from_here() -> None:
    """Let code be imported from the working directory, as `python -m` does."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


def check_code(arch: str) -> None:
    """Raise ConfigError if a factory's module is not found here; nothing of it is run."""
    source, separator, name = arch.partition(":")
    if arch.startswith(FOLDER) or source in LIBRARIES or not separator or not name:
        return
    import_from_here()
    package = source.partition(".")[0]
    if package not in sys.modules and find_spec(package) is None:
        raise ConfigError(f"{arch}: no module {package} is found here; put its folder on PYTHONPATH, or install it")


def read_config(store: Store, uri: str) -> dict[str, Any]:
    """Read the config.json of a model folder. Raises ClassifierError if there is none, or no library is named in it."""
    try:
        config = read_json(store, join(uri, CONFIG))
    except NotFound as error:
        raise ClassifierError(f"{uri}: no model folder there (no {CONFIG}); save_pretrained writes one") from error
    if not {"model_type", "architecture"} & config.keys():
        raise ClassifierError(f"{join(uri, CONFIG)}: says neither model_type nor architecture")
    return config


def read_json(store: Store, uri: str) -> dict[str, Any]:
    """Read a JSON object. Raises ClassifierError for anything else, NotFound if there is nothing."""
    try:
        document = json.loads(store.read(uri))
    except ValueError as error:
        raise ClassifierError(f"{uri}: not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ClassifierError(f"{uri}: expected a JSON object, found {type(document).__name__}")
    return document
