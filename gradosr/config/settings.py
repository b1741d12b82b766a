"""Strict, frozen settings, read from YAML with every fault reported at once, each on one line."""

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from gradosr.config.faults import faults_of
from gradosr.errors import ConfigError


class Settings(BaseModel):
    """Base class of all settings: immutable, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, as in YAML 1.2 and JSON; YAML 1.1 wants 1.0e-3."""


class _Dumper(yaml.SafeDumper):
    """YAML that _Loader reads back: a text that looks like such a number is quoted."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )

SettingsT = TypeVar("SettingsT", bound=Settings)


def load_settings(
    model: type[SettingsT],
    text: str,
    source: str,
    overrides: Sequence[str] = (),
    flags: Mapping[str, Any] = MappingProxyType({}),
) -> SettingsT:
    """Return the settings in YAML `text` after applying flags and then `key.path=value` overrides, which are YAML too.

    `source` names the document in messages; flags are values by key path. Raise ConfigError with every fault, one per
    line.
    """
    document = read_document(text, source)
    for path, value in flags.items():
        _put(document, path, value, f"--{path}")
    for override in overrides:
        _apply(document, override)
    return validate_settings(model, document, source)


def read_document(text: str, source: str) -> dict[str, Any]:
    """Return the mapping in YAML `text`. Raise ConfigError if there is none."""
    try:
        document = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from error
    if document is None:
        document = {}
    if not isinstance(document, dict):
        raise ConfigError(f"{source}: expected a mapping of settings, found {type(document).__name__}")
    return document


def validate_settings(model: type[SettingsT], document: Mapping[str, Any], source: str) -> SettingsT:
    """Return the settings in plain data named `source`. Raise ConfigError with every fault, one per line."""
    try:
        return model.model_validate(document)
    except ValidationError as error:
        prefix = f"{source}: " if source else ""
        raise ConfigError("\n".join(prefix + fault for fault in faults_of(model, error))) from error


def as_yaml(document: dict[str, Any]) -> str:
    """Return a document as YAML that load_settings reads back."""
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False)


def in_line(value: Any) -> str:
    """Return a value as YAML on one line that load_settings reads back."""
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, default_flow_style=True, width=1_000_000)
    return text.removesuffix("\n").removesuffix("\n...").strip()


def _apply(document: dict[str, Any], override: str) -> None:
    path, separator, value = override.partition("=")
    if not separator or not all(path.strip().split(".")):
        raise ConfigError(f"--set {override}: expected key=value or key.path=value")
    try:
        parsed = yaml.load(value, _Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not valid YAML") from error
    _put(document, path.strip(), parsed, f"--set {override}")


def _put(document: dict[str, Any], path: str, value: Any, source: str) -> None:
    *sections, last = path.split(".")
    for key in sections:
        inner = document.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{source}: {key} is not a section")
        document = inner
    document[last] = value
