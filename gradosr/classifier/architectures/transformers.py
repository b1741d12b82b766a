"""Architectures of transformers: transformers:MODEL_TYPE, with the rest of its config.json as args.

Models are built by their constructors, never from a path or the name of a hub repository. Entries of a config.json that
could download or run code are not passed on: `auto_map` (code in the folder) and attention implementations (kernels
from the hub).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gradosr.classifier.architectures.stated import Stated, check_listed, stated, unstated
from gradosr.config import TransformSettings
from gradosr.errors import ConfigError
from gradosr.gradients import pick_logits

DROPPED = ("auto_map", "attn_implementation", "quantization_config", "dtype", "torch_dtype", "id2label", "label2id",
           "num_labels", "model_type", "transformers_version")  # fmt: skip
"""Keys of a config.json that are not arguments: those that could run code, and those set by the bundle or the job."""
NOT_ALONE = ("timm_wrapper", "shieldgemma2")
"""Model types that are not supported: the first builds what timm:NAME builds, the second needs a text."""
RESAMPLE = {0: "nearest", 2: "bilinear", 3: "bicubic"}
"""Interpolation by Pillow's number."""
RESIZE_AND_CROP = ("Beit", "Bit", "CLIP", "DeiT", "MobileNetV1", "MobileNetV2", "Pvt", "Siglip", "ViT")
"""Image processors that resize to `size`, crop to `crop_size` and do nothing else."""


def build(name: str, args: Mapping[str, Any], classes: int) -> nn.Module:
    """Build an architecture of transformers that returns logits alone, as described by `Library`."""
    library = _transformers(f"transformers:{name}")
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as LISTED

    check_listed("transformers", name, [listed for listed in LISTED if listed not in NOT_ALONE])
    config = library.CONFIG_MAPPING[name].from_dict({"num_labels": classes, **plain(args)})
    models = library.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(config)]
    models = models if isinstance(models, tuple) else (models,)
    named = [model for model in models if model.__name__ in (config.architectures or ())]
    classifier: nn.Module = (named or models)[0](config)
    pick_logits(classifier, "logits")
    return classifier


def transform(name: str, args: Mapping[str, Any]) -> Stated:
    """Raise ConfigError, because transformers has no default weights."""
    raise unstated(f"transformers:{name} states no transform without a folder (arch: hf:URI)")


def arguments(name: str, transform: TransformSettings) -> dict[str, Any]:
    """Return no arguments: a model's config.json states them all."""
    return {}


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments in a config.json, including nested ones."""
    return {
        key: plain(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in DROPPED and not key.startswith("_")
    }


def own_names(classifier: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights saved by any version of transformers to the names of this version's modules.

    Weights that do not fit are kept: unexpected names unchanged, and tensors of another shape without their values.
    """
    model: Any = classifier
    with _quiet():
        loaded, told = type(model).from_pretrained(
            None, config=model.config, state_dict=dict(weights), output_loading_info=True, ignore_mismatched_sizes=True
        )
    shapes = {name: found for name, found, _ in told["mismatched_keys"]}
    return {
        **{
            name: torch.empty(shapes[name], device="meta") if name in shapes else tensor
            for name, tensor in loaded.state_dict().items()
            if name not in told["missing_keys"]
        },
        **{name: weights[name] for name in told["unexpected_keys"] if name in weights},
    }


def of_processor(document: Mapping[str, Any], origin: str) -> Stated:
    """Return the transform of a preprocessor_config.json. Raises ConfigError for one that cannot be expressed here."""
    kind = str(document.get("image_processor_type") or document.get("feature_extractor_type") or "")
    kind = kind.removesuffix("Fast").removesuffix("ImageProcessor").removesuffix("FeatureExtractor")
    if kind not in (*RESIZE_AND_CROP, "ConvNext", "Levit"):
        raise unstated(f"that of {origin} is not one that can be said here (image processor {kind or 'unnamed'})")
    said = getattr(_transformers(origin), f"{kind}ImageProcessor").from_dict(dict(document)).to_dict()
    if not said.get("do_rescale") or abs(255 * said["rescale_factor"] - 1) > 1e-6:
        raise unstated(f"that of {origin} is not one that can be said here (it does not scale pixels to 0..1)")
    resize, crop = _sizes(kind, said)
    return stated(
        origin,
        resize=resize,
        crop=crop,
        mean=tuple(said["image_mean"]) if said["do_normalize"] else (0.0, 0.0, 0.0),
        std=tuple(said["image_std"]) if said["do_normalize"] else (1.0, 1.0, 1.0),
        interpolation=RESAMPLE.get(said["resample"], "another"),
    )


def _sizes(kind: str, said: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the sizes of resize and crop."""
    size, crop = said["size"], said.get("crop_size") if said.get("do_center_crop") else None
    shorter = size.get("shortest_edge")
    resize = shorter or (size["height"], size["width"])
    cropped = (crop["height"], crop["width"]) if crop else None
    if not said["do_resize"]:
        resize = None
    elif kind == "ConvNext":  # it crops below 384 pixels and distorts from there on
        resize, cropped = (int(shorter / said["crop_pct"]), shorter) if shorter < 384 else ((shorter, shorter), cropped)
    elif kind == "Levit" and shorter:
        resize = int(256 / 224 * shorter)
    return resize, cropped[0] if isinstance(cropped, tuple) and cropped[0] == cropped[1] else cropped


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the report and progress bar of transformers; a misfit is reported in one line, as for every library."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _transformers(name: str) -> Any:
    """Import transformers. Raises ConfigError if it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(f"{name}: transformers is not installed (pip install 'gradosr[transformers]')") from error
    return transformers
