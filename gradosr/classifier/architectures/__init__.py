"""Libraries of architectures. Each builds by name and states the images its weights are for; nothing is downloaded."""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import nn

from gradosr.classifier.architectures import timm, torchvision, transformers
from gradosr.classifier.architectures.stated import Stated
from gradosr.config import TransformSettings


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

    def arguments(self, name: str, transform: TransformSettings) -> Mapping[str, Any]:
        """Return the arguments with which the library itself builds an architecture that it loads weights into.

        They are those that change what the network makes of an image of this transform; the library's defaults are for
        training from scratch.
        """
        ...


LIBRARIES: Mapping[str, Library] = {"torchvision": torchvision, "timm": timm, "transformers": transformers}
