"""transformers:MODEL_TYPE, with the rest of its config.json as args.

Models come from their constructors, never from a path or a name of a hub. What in a config.json could fetch or run
code is not passed on: `auto_map` (code of the folder's own), attention implementations (kernels of the hub).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gradosr.classifier.architectures.stated import Stated, check_listed, stated, unstated
from gradosr.errors import ConfigError
from gradosr.gradients import pick_logits

DROPPED = ("auto_map", "attn_implementation", "quantization_config", "dtype", "torch_dtype", "id2label", "label2id",
           "num_labels", "model_type", "transformers_version")  # fmt: skip
"""Keys of a config.json that are no arguments: see above, and what the bundle or the job says."""
NOT_ALONE = ("timm_wrapper", "shieldgemma2")
"""Not served: the one builds what timm:NAME builds, the other wants a text."""
RESAMPLE = {0: "nearest", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers."""
RESIZE_AND_CROP = ("Beit", "Bit", "CLIP", "DeiT", "MobileNetV1", "MobileNetV2", "Pvt", "Siglip", "ViT")
"""Image processors that resize to `size`, crop to `crop_size` and do nothing else."""


def build(name: str, args: Mapping[str, Any], classes: int) -> nn.Module:
    """See Library; it returns logits alone."""
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
    """See Library: there are no default weights."""
    raise unstated(f"transformers:{name} states no transform without a folder (arch: hf:URI)")


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments in a config.json, nested ones too."""
    return {
        key: plain(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in DROPPED and not key.startswith("_")
    }


def own_names(classifier: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights as a save_pretrained of any version names them, under the names of this version's modules.

    What does not fit stays: unexpected names as they are, tensors of another shape without their values.
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
    """The transform of a preprocessor_config.json. Raises ConfigError for one that does more than we do."""
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
    """Resize and crop."""
    size, crop = said["size"], said.get("crop_size") if said.get("do_center_crop") else None
    shorter = size.get("shortest_edge")
    resize = shorter or (size["height"], size["width"])
    cropped = (crop["height"], crop["width"]) if crop else None
    if not said["do_resize"]:
        resize = None
    elif kind == "ConvNext":  # below 384 pixels it crops, from there on it distorts
        resize, cropped = (int(shorter / said["crop_pct"]), shorter) if shorter < 384 else ((shorter, shorter), cropped)
    elif kind == "Levit" and shorter:
        resize = int(256 / 224 * shorter)
    return resize, cropped[0] if isinstance(cropped, tuple) and cropped[0] == cropped[1] else cropped


@contextmanager
def _quiet() -> Iterator[None]:
    """Neither its report nor its progress bar: what does not fit is told in one line, as of every library."""
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
    """The library."""
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(f"{name}: transformers is not installed (pip install 'gradosr[transformers]')") from error
    return transformers
