"""Transforms stated by libraries of architectures, expressed as TransformSettings."""

import difflib
from collections.abc import Collection
from typing import Any, NamedTuple

from pydantic import ValidationError

from gradosr.config import TransformSettings
from gradosr.config.faults import one_fault
from gradosr.errors import ConfigError


class Stated(NamedTuple):
    """A transform stated by a library, and where it is stated."""

    transform: TransformSettings
    origin: str


def stated(origin: str, **fields: Any) -> Stated:
    """Create a stated transform. Raises ConfigError for one that TransformSettings cannot express."""
    try:
        return Stated(TransformSettings(**fields), origin)
    except ValidationError as error:
        raise unstated(f"{origin} is not one that can be said here ({one_fault(error)})") from error


def unstated(reason: str) -> ConfigError:
    """Return an error that asks the user for a transform, for the given reason."""
    return ConfigError(
        f"classifier.transform: required: {reason}; give crop, or resize as [height, width], mean and std"
    )


def check_listed(library: str, name: str, listed: Collection[str]) -> None:
    """Raise ConfigError, with the nearest name, if a name is not listed."""
    if name not in listed:
        close = difflib.get_close_matches(name, listed, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(f"{library}:{name}: {library} has no classifier of that name{hint}")
