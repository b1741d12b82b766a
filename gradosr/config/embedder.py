"""Settings of a score job's second network."""

from typing import Any

from pydantic import model_validator

from gradosr.config.classifier import LIBRARIES, NetworkSettings
from gradosr.config.uris import Uri


class EmbedderSettings(NetworkSettings):
    """A second network, whose features of an image are stored beside its scores, for audits to find clusters in."""

    arch: str
    """torchvision:NAME, timm:NAME or hf:URI (a folder with config.json and model.safetensors), of which the features
    before the last layer are stored; or package.module:factory, listed in `trust`, of which the output is stored."""
    args: dict[str, Any] = {}
    """Keyword arguments of the architecture; `num_classes: 0` builds one without its last layer, where the weights do
    not tell. Arguments that fetch or read files are not allowed."""
    weights: Uri | None = None
    """URI of a .safetensors file or a torch checkpoint of plain tensors; a model folder brings its own, and a
    factory may."""

    @property
    def own_code(self) -> bool:
        """True if the architecture is a factory of the user's own."""
        return self.folder is None and self.arch.partition(":")[0] not in LIBRARIES

    @model_validator(mode="after")
    def _whole(self) -> "EmbedderSettings":
        if not self.own_code and not self.trained:
            raise ValueError(f"{self.arch} needs weights; nothing is downloaded")
        if self.own_code and self.transform is None:
            raise ValueError(
                f"{self.arch} needs a transform, as it cannot say what images its weights were made for; give crop, or "
                "resize as [height, width], mean and std"
            )
        return self
