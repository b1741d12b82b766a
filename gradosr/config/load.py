"""Loading of a job from a YAML file, from a file and flags, or from flags alone."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gradosr.config.compute import Serving
from gradosr.config.fit import FitJob
from gradosr.config.protocol import OsrProtocol
from gradosr.config.score import ScoreJob
from gradosr.config.screening import ScreenJob
from gradosr.config.settings import Settings, SettingsT, as_yaml, load_settings, read_document
from gradosr.errors import ConfigError

SUFFIXES = (".yaml", ".yml", ".json")
"""Endings of the names of config files."""
KINDS: Mapping[str, type[Settings]] = {"fit": FitJob, "screen": ScreenJob, "protocol": OsrProtocol, "score": ScoreJob}
"""Kinds of config files, by the name that `gradosr schema` gives them."""
_COMMANDS = {"protocol": "evaluate --protocol osr"}
"""Commands that take a kind of another name than their own."""


def is_config(target: str) -> bool:
    """Tell a config file from a bundle, a run or an archive: by its ending, or because it is a file of another name."""
    return target.endswith(SUFFIXES) or (bool(target) and "://" not in target and Path(target).is_file())


_TELLING = {
    "protocol": {"tasks", "test", "detectors"},
    "fit": {"classifier", "detector", "train", "known", "held_out"},
    "screen": {"gates"},
    "score": {"bundle", "output", "workers"},
}
"""Keys that tell a kind, in this order."""


def kind_of(keys: Collection[str]) -> str | None:
    """Return the kind of a config by its keys; None if they tell of none."""
    return next((kind for kind, telling in _TELLING.items() if telling & {*keys}), None)


def load_job(
    model: type[SettingsT],
    path: str | None,
    overrides: Sequence[str] = (),
    flags: Mapping[str, Any] = MappingProxyType({}),
) -> SettingsT:
    """Load the job in a YAML file after applying flags, values by key path, and then overrides.

    Without a file the job is made of flags and overrides alone. Raise ConfigError with every fault, one per line; for a
    config of another kind, one line names the command that takes it.
    """
    text, source = ("", "") if path is None else (_read(path), path)
    try:
        return load_settings(model, text, source, overrides, flags)
    except ConfigError as error:
        kind = kind_of(read_document(text, source))
        if path is None or model not in KINDS.values() or kind is None or issubclass(model, KINDS[kind]):
            raise
        raise ConfigError(f"{path}: this is a {kind} config: `gradosr {_COMMANDS.get(kind, kind)} {path}`") from error


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise ConfigError(f"{path}: a folder, where a config file is expected; `gradosr init` writes one") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from error


def check_job(target: str, overrides: Sequence[str] = ()) -> FitJob | Serving:
    """Load the job in a YAML file, whose sections determine its kind, or only a bundle, given by its URI.

    Raise ConfigError with every fault, one per line.
    """
    if not is_config(target):
        return load_settings(Serving, as_yaml({"bundle": target}), target, overrides)
    kind = kind_of(read_document(_read(target), target))
    if kind == "fit":
        return load_job(FitJob, target, overrides)
    return load_job(ScreenJob if kind == "screen" else ScoreJob, target, overrides)
