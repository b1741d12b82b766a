"""Model folders from Hugging Face's save_pretrained or timm's save_for_hf: config.json beside model.safetensors."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gradosr.classifier.architectures import timm, transformers
from gradosr.classifier.architectures.stated import Stated, unstated
from gradosr.classifier.sources import CONFIG, PROCESSOR, read_config, read_json
from gradosr.errors import NotFound
from gradosr.store import Store, join


@dataclass(frozen=True)
class ModelFolder:
    """The description of a classifier in a folder; its weights have not been read yet."""

    uri: str
    config: Mapping[str, Any]
    processor: Mapping[str, Any] | None

    @property
    def of_timm(self) -> bool:
        """True if timm wrote the folder, False if transformers did."""
        return "model_type" not in self.config

    @property
    def arch(self) -> str:
        """The reference that gradosr.classifier.build.build_classifier takes."""
        return f"timm:{self.config['architecture']}" if self.of_timm else f"transformers:{self.config['model_type']}"

    @property
    def args(self) -> dict[str, Any]:
        """The arguments of the architecture; they suffice to build it without the folder."""
        return dict(self.config.get("model_args") or {}) if self.of_timm else transformers.plain(self.config)

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes in logit order; empty if they are merely numbered."""
        names = self.config.get("id2label") or {}
        listed = tuple(str(names[index]) for index in sorted(names, key=int)) or self.config.get("label_names") or ()
        return () if any(name == f"LABEL_{index}" for index, name in enumerate(listed)) else tuple(listed)

    def transform(self) -> Stated:
        """Return the folder's transform. Raises ConfigError if it states none, or one that cannot be expressed here."""
        if self.of_timm:
            origin = f"{join(self.uri, CONFIG)} (pretrained_cfg)"
            return timm.of_cfg(self.config.get("pretrained_cfg") or {}, self.args, origin)
        if self.processor is None:
            raise unstated(f"{self.uri} has no {PROCESSOR}")
        return transformers.of_processor(self.processor, join(self.uri, PROCESSOR))


def read_folder(store: Store, uri: str) -> ModelFolder:
    """Read the description of a model folder. Raises ClassifierError if there is none, or no library is named in it."""
    config = read_config(store, uri)
    try:
        return ModelFolder(uri, config, read_json(store, join(uri, PROCESSOR)))
    except NotFound:
        return ModelFolder(uri, config, None)
