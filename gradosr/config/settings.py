"""Strict, frozen settings, read from YAML with every fault reported at once, each on one line."""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from gradosr.errors import ConfigError


class Settings(BaseModel):
    """Base class of all settings: immutable, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, as in YAML 1.2 and JSON; YAML 1.1 wants 1.0e-3."""


class _Dumper(yaml.SafeDumper):
    """YAML that _Loader reads back: a text that looks like such a number is quoted."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )

SettingsT = TypeVar("SettingsT", bound=Settings)


def load_settings(model: type[SettingsT], text: str, source: str, overrides: Sequence[str] = ()) -> SettingsT:
    """Return the settings in YAML `text` after applying `key.path=value` overrides, whose values are YAML too.

    `source` names the document in messages. Raise ConfigError with every fault, one per line.
    """
    try:
        document = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from error
    if document is None:
        document = {}
    if not isinstance(document, dict):
        raise ConfigError(f"{source}: expected a mapping of settings, found {type(document).__name__}")
    for override in overrides:
        _apply(document, override)
    return validate_settings(model, document, source)


def validate_settings(model: type[SettingsT], document: Mapping[str, Any], source: str) -> SettingsT:
    """Return the settings in plain data named `source`. Raise ConfigError with every fault, one per line."""
    try:
        return model.model_validate(document)
    except ValidationError as error:
        faults = [f"{source}: {fault}" for fault in _faults(model, error)]
        raise ConfigError("\n".join(faults)) from error


def as_yaml(document: dict[str, Any]) -> str:
    """Return a document as YAML that load_settings reads back."""
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False)


def _apply(document: dict[str, Any], override: str) -> None:
    path, separator, value = override.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        raise ConfigError(f"--set {override}: expected key=value or key.path=value")
    try:
        parsed = yaml.load(value, _Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not valid YAML") from error
    for key in keys[:-1]:
        inner = document.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {override}: {key} is not a section")
        document = inner
    document[keys[-1]] = parsed


def _faults(model: type[BaseModel], error: ValidationError) -> list[str]:
    """Return one line per faulty place in the document; expectations of a union's alternatives are joined by "or"."""
    wants: dict[str, list[str]] = {}
    found: dict[str, str] = {}
    for fault in error.errors(include_url=False):
        path, want, shown = _fault(model, dict(fault))
        wants.setdefault(path, []).append(want)
        found[path] = shown
    # In a union, faults inside the alternative that the user chose are enough.
    wants = {path: want for path, want in wants.items() if not any(other.startswith(f"{path}.") for other in wants)}
    return [(f"{path}: " if path else "") + " or ".join(dict.fromkeys(wants[path])) + found[path] for path in wants]


def _fault(model: type[BaseModel], fault: dict[str, Any]) -> tuple[str, str, str]:
    """Return the path as the user wrote it, the expectation there, and the value found."""
    path, owner = _resolve(model, fault["loc"])
    if fault["type"] == "missing":
        return path, "required", ""
    if fault["type"] == "extra_forbidden":
        valid = sorted(owner.model_fields)
        close = difflib.get_close_matches(str(fault["loc"][-1]), valid, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        return path, f"unknown key{hint} (valid: {', '.join(valid)})", ""
    value = fault.get("input")
    shown = f", found {value!r}" if isinstance(value, str | int | float | bool) else ""
    return path, str(fault["msg"]).removeprefix("Value error, "), shown


def _resolve(model: type[BaseModel], loc: tuple[str | int, ...]) -> tuple[str, type[BaseModel]]:
    """Return the dotted path as the user wrote it and the model that holds its last key.

    Tags of unions are left out of the path.
    """
    names: list[str] = []
    owner = model
    choices = [model]  # models in which the next step may be a key; empty inside a plain field
    for place, step in enumerate(loc):
        tagged = [choice for choice in choices if len(choices) > 1 and step in (_tag(choice), choice.__name__)]
        if tagged:
            choices = tagged
        elif choices and not _is_kind(step, choices[0]):
            names.append(str(step))
            field = choices[0].model_fields.get(str(step))
            if field or place == len(loc) - 1:  # otherwise it is a key in a mapping of models
                owner = choices[0]
                choices = _models(field.annotation) if field else []
        elif isinstance(step, int):
            names.append(str(step))
    return ".".join(names), owner


def _is_kind(step: str | int, model: type[BaseModel]) -> bool:
    """Return whether pydantic names a member of a union in this step.

    It names a model, or a type such as `constrained-int` or `literal['auto']`.
    """
    return isinstance(step, str) and (
        model.__name__ in step or step.partition("[")[0] in ("constrained-int", "literal")
    )


def _tag(model: type[BaseModel]) -> str | None:
    kind = model.model_fields.get("kind")
    return kind.default if kind else None


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]
