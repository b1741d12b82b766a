"""What a library says of its architectures, in our words."""

import difflib
from collections.abc import Collection
from typing import Any, NamedTuple

from pydantic import ValidationError

from gradosr.config import TransformSettings
from gradosr.errors import ConfigError


class Stated(NamedTuple):
    """A transform that a library states, and where."""

    transform: TransformSettings
    origin: str


def stated(origin: str, **fields: Any) -> Stated:
    """Raises ConfigError for a transform that TransformSettings cannot say."""
    try:
        return Stated(TransformSettings(**fields), origin)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(map(str, fault["loc"]))
        raise unstated(
            f"{origin} is not one that can be said here ({where + ': ' if where else ''}{fault['msg']})"
        ) from error


def unstated(reason: str) -> ConfigError:
    """Why the user has to say it."""
    return ConfigError(
        f"classifier.transform: required: {reason}; give crop, or resize as [height, width], mean and std"
    )


def check_listed(library: str, name: str, listed: Collection[str]) -> None:
    """Raise ConfigError, with the nearest name, for one that is not listed."""
    if name not in listed:
        close = difflib.get_close_matches(name, listed, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(f"{library}:{name}: {library} has no classifier of that name{hint}")
