"""Libraries of architectures. Each builds by name and states the images its weights are for; nothing is downloaded."""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import nn

from gradosr.classifier.architectures import timm, torchvision, transformers
from gradosr.classifier.architectures.stated import Stated


class Library(Protocol):
    """The interface of a module in this package."""

    def build(self, name: str, args: Mapping[str, Any], classes: int) -> nn.Module:
        """Build an architecture with fresh weights. Raises ConfigError for a name that the library does not have."""
        ...

    def transform(self, name: str, args: Mapping[str, Any]) -> Stated:
        """Return the transform of the library's default weights.

        Raises ConfigError if the library states none, or one that cannot be expressed here.
        """
        ...


LIBRARIES: Mapping[str, Library] = {"torchvision": torchvision, "timm": timm, "transformers": transformers}
