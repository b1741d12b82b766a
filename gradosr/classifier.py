"""The classifier: an architecture by reference, weights from the store, and whether they can serve together."""

import difflib
import importlib
import io
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from gradosr.config import TransformSettings
from gradosr.errors import ClassifierError, ConfigError, GradosrError, first_line
from gradosr.gradients import pick_logits
from gradosr.store import Store

LIBRARIES = ("torchvision", "timm")
REFUSED_ARGS = ("pretrained", "weights", "checkpoint_path")
REFUSED_VALUES = ("hf-hub:", "hf_hub:", "local-dir:", "http://", "https://", "file://")


def build_classifier(
    arch: str,
    args: Mapping[str, Any],
    classes: int,
    trusted: Collection[str] = (),
    logits: int | str | None = None,
) -> nn.Module:
    """The architecture with fresh weights, in eval mode; no code is imported that is not a library's or `trusted`.

    `arch` is torchvision:NAME, timm:NAME or package.module:factory; `logits` the entry of its output that holds
    them, if it returns more. Raises ConfigError for a reference that would fetch something or is not trusted,
    ClassifierError when it cannot be built.
    """
    source, separator, name = arch.partition(":")
    if not separator or not name:
        raise ConfigError(f"arch {arch}: expected torchvision:NAME, timm:NAME or package.module:factory")
    check_args(arch, args)
    try:
        if source == "torchvision":
            classifier = _torchvision(name, {"num_classes": classes, **args})
        elif source == "timm":
            classifier = _timm(name, {"num_classes": classes, **args})
        else:
            classifier = _factory(arch, trusted)(**args)
    except GradosrError:
        raise
    except Exception as error:  # whatever an architecture says to arguments it does not take
        raise ClassifierError(f"{arch} with args {dict(args)}: {first_line(error)}") from error
    if not isinstance(classifier, nn.Module):
        raise ClassifierError(f"{arch} returns {type(classifier).__name__}; expected a torch.nn.Module")
    if logits is not None:
        pick_logits(classifier, logits)
    return classifier.eval()


def check_args(arch: str, args: Mapping[str, Any]) -> None:
    """Raise ConfigError for a name or an argument that would fetch or read files."""
    if refused := [key for key in args if key.startswith(REFUSED_ARGS)]:
        raise ConfigError(f"{arch}: argument {refused[0]} would fetch or read files; give classifier.weights instead")
    for value in (arch.partition(":")[2], *args.values()):
        if isinstance(value, str) and value.startswith(REFUSED_VALUES):
            raise ConfigError(f"{arch}: {value} would fetch or read files; give classifier.weights instead")


def _torchvision(name: str, args: Mapping[str, Any]) -> nn.Module:
    from torchvision import models

    _check_listed("torchvision", name, models.list_models(module=models))
    build = models.get_model_builder(name)
    classifier: nn.Module = build(weights=None, **args)
    return classifier


def _timm(name: str, args: Mapping[str, Any]) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise ConfigError(f"timm:{name}: timm is not installed (pip install 'gradosr[timm]')") from error
    _check_listed("timm", name, timm.list_models())
    classifier: nn.Module = timm.create_model(name, pretrained=False, **args)
    return classifier


def _check_listed(library: str, name: str, listed: Collection[str]) -> None:
    if name not in listed:
        close = difflib.get_close_matches(name, listed, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(f"{library}:{name}: {library} has no classifier of that name{hint}")


def _factory(arch: str, trusted: Collection[str]) -> Any:
    """The callable of package.module:factory; as with python -m, the working directory is a place to import from."""
    if arch not in trusted:
        raise ConfigError(f"{arch}: not trusted; a bundle imports no code unless the config says `trust: [{arch}]`")
    module, _, name = arch.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # its module runs here
        raise ConfigError(f"{arch}: cannot be imported: {first_line(error)}; put its folder on PYTHONPATH") from error


def read_weights(store: Store, uri: str) -> dict[str, Tensor]:
    """Tensors by name, of a .safetensors file or a torch checkpoint of plain tensors; never runs code from the file."""
    body = store.read(uri)
    try:
        if uri.endswith(".safetensors"):
            return safetensors.torch.load(body)
        state = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except safetensors.SafetensorError as error:
        raise ClassifierError(f"{uri}: not a safetensors file: {error}") from error
    except Exception as error:  # torch.load raises whatever a damaged or hostile file makes its parts raise
        # Not in torch's words, which advise to let the file run its code.
        raise ClassifierError(
            f"{uri}: damaged, or not a checkpoint of plain tensors; save it by torch.save(net.state_dict(), ...)"
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise ClassifierError(f"{uri}: expected a mapping of names to tensors (a state_dict), found something else")
    return state


def load_weights(classifier: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Copy `weights` in. Raises ClassifierError with the first names that do not fit."""
    own = classifier.state_dict()
    missing = [name for name in own if name not in weights and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in weights if name not in own]
    shapes = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    faults = [
        f"{len(names)} {what}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if faults:
        raise ClassifierError(f"{source}: weights do not fit the architecture: {'; '.join(faults)}")
    classifier.load_state_dict(dict(weights), strict=False)


def input_size(transform: TransformSettings) -> tuple[int, int]:
    """Height and width of the classifier's input, in pixels."""
    size = transform.crop if transform.crop is not None else transform.resize
    if isinstance(size, tuple):
        return size
    return (size or 0, size or 0)


def check_logits(logits_BK: Tensor, classes: int) -> None:
    """Raise ClassifierError when there is not one logit per class."""
    if logits_BK.shape[1] != classes:
        raise ClassifierError(
            f"the classifier gives {logits_BK.shape[1]} logits, but {classes} classes are named; "
            "check classifier.classes and args.num_classes"
        )


def normalise(images_BCHW: Tensor, transform: TransformSettings, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 pixels to the classifier's input: scaled to 0..1, less the mean, over the deviation; on their device."""
    mean, std = (
        torch.tensor(values, device=images_BCHW.device, dtype=dtype).view(3, 1, 1)
        for values in (transform.mean, transform.std)
    )
    return (images_BCHW.to(dtype) / 255 - mean) / std
