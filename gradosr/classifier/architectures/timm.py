"""Architectures of timm: timm:NAME, or timm:NAME.TAG for the transform of particular weights."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gradosr.classifier.architectures.stated import Stated, check_listed, stated, unstated
from gradosr.config import TransformSettings
from gradosr.errors import ConfigError, machine_fault


def build(name: str, args: Mapping[str, Any], classes: int) -> nn.Module:
    """Build an architecture of timm, as described by `Library`."""
    classifier: nn.Module = _timm(name).create_model(name, pretrained=False, **{"num_classes": classes, **args})
    return classifier


def transform(name: str, args: Mapping[str, Any]) -> Stated:
    """Return the transform of timm's weights, as described by `Library`."""
    cfg = _timm(name).get_pretrained_cfg(name)
    return of_cfg(cfg.to_dict(), args, f"timm's {name}{'' if '.' in name or not cfg.tag else '.' + cfg.tag}")


def of_cfg(cfg: Mapping[str, Any], args: Mapping[str, Any], origin: str) -> Stated:
    """Return the evaluation transform of a `pretrained_cfg`, equal to that of timm.data.create_transform."""
    from timm.data.config import resolve_data_config

    if not isinstance(side := args.get("img_size", 0), int):
        raise unstated(f"args.img_size is {side}")
    said = resolve_data_config({"img_size": side or None}, pretrained_cfg=dict(cfg))
    (_, height, width), mode = said["input_size"], said["crop_mode"]
    resize = tuple(math.floor(side / said["crop_pct"]) for side in (height, width))
    if mode not in ("center", "squash") or (mode == "center" and height != width):
        raise unstated(f"that of {origin} is not one that can be said here (crop_mode {mode}, {height}x{width})")
    return stated(
        origin,
        resize=resize if mode == "squash" else resize[0],
        crop=height if height == width else (height, width),
        mean=tuple(said["mean"]),
        std=tuple(said["std"]),
        interpolation=said["interpolation"],
    )


def arguments(name: str, transform: TransformSettings) -> dict[str, Any]:
    """Return the arguments of timm's loading, as described by `Library`."""
    return {"bn_eps": 1e-3} if name.partition(".")[0] == "fbnetc_100" else {}  # timm's BN_EPS_TF_DEFAULT


def own_names(name: str, args: Mapping[str, Any], classes: int, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Rename weights as timm's loader of published files does; those that it refuses are returned as they are.

    It loads some architectures without a word of what the file lacks; so what comes from the file is known by becoming
    nan where all weights are.
    """
    try:
        loaded = _loaded(name, args, classes, weights)
        nans = {
            key: torch.full_like(one, torch.nan) if one.is_floating_point() else one for key, one in weights.items()
        }
        marks = _loaded(name, args, classes, nans)
    except Exception as error:  # whatever a filter or torch raises for weights that are of something else
        if fault := machine_fault(error):
            raise fault from error
        return weights
    return {key: tensor for key, tensor in loaded.items() if not tensor.is_floating_point() or marks[key].isnan().any()}


def _loaded(name: str, args: Mapping[str, Any], classes: int, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what an architecture is after timm's loader has put weights into it; they need no network."""
    given = {"num_classes": classes, **args}
    overlay = {"state_dict": dict(weights), "num_classes": given["num_classes"]}
    with torch.random.fork_rng(devices=()):
        model = _timm(name).create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **given)
    state: dict[str, Tensor] = model.state_dict()
    return state


def _timm(name: str) -> Any:
    """Import timm. Raises ConfigError if it is not installed or has no classifier of that name."""
    try:
        import timm
    except ImportError as error:
        raise ConfigError(f"timm:{name}: timm is not installed (pip install 'gradosr[timm]')") from error
    check_listed("timm", name, [*timm.list_models(), *timm.list_pretrained()])
    return timm
