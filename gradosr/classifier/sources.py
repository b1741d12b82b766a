"""A search, without torch, for the parts of a classifier that a config names: code of its own, or a model folder."""

import hashlib
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gradosr.config import FOLDER, LIBRARIES, EmbedderSettings
from gradosr.errors import ClassifierError, ConfigError, NotFound
from gradosr.store import Store, join

CONFIG, PROCESSOR, WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"
"""Files of a model folder."""


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


def identity(settings: EmbedderSettings, store: Store) -> dict[str, Any]:
    """Return what the output of a second network depends on; of its files not where they are, but what they hold.

    Raises the errors of reading them.
    """
    said = settings.model_dump(mode="json", exclude={"weights"})
    files = {} if settings.weights is None else {WEIGHTS: settings.weights}
    if settings.folder is not None:
        said["arch"] = FOLDER + settings.folder.rstrip("/").rpartition("/")[2]
        files = {name: join(settings.folder, name) for name in (CONFIG, PROCESSOR, WEIGHTS)} | files
    digests = {name: _digest(store, uri) for name, uri in files.items() if name != PROCESSOR or store.exists(uri)}
    return {**said, "files": digests}


def _digest(store: Store, uri: str) -> str:
    """Return the SHA-256 of an object, of which little is held at once."""
    digest = hashlib.sha256()
    with store.open(store.stat(uri)) as body:
        while block := body.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def read_json(store: Store, uri: str) -> dict[str, Any]:
    """Read a JSON object. Raises ClassifierError for anything else, NotFound if there is nothing."""
    try:
        document = json.loads(store.read(uri))
    except ValueError as error:
        raise ClassifierError(f"{uri}: not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ClassifierError(f"{uri}: expected a JSON object, found {type(document).__name__}")
    return document
