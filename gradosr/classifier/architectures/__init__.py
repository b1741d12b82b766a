"""Libraries of architectures: each builds by name, and says what images its weights are for. Nothing is fetched."""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import nn

from gradosr.classifier.architectures import timm, torchvision, transformers
from gradosr.classifier.architectures.stated import Stated


class Library(Protocol):
    """One module of this package each."""

    def build(self, name: str, args: Mapping[str, Any], classes: int) -> nn.Module:
        """The architecture with fresh weights. Raises ConfigError for a name that the library does not have."""
        ...

    def transform(self, name: str, args: Mapping[str, Any]) -> Stated:
        """Of the library's default weights. Raises ConfigError where it says none, or none that we can express."""
        ...


LIBRARIES: Mapping[str, Library] = {"torchvision": torchvision, "timm": timm, "transformers": transformers}
