"""Construction of a classifier from a reference to its architecture, and checks of its input and output."""

import functools
import importlib
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gradosr.classifier.architectures import LIBRARIES
from gradosr.classifier.sources import import_from_here
from gradosr.config import FOLDER, TransformSettings
from gradosr.errors import ClassifierError, ConfigError, GradosrError, MachineFault, first_line, machine_fault
from gradosr.gradients import pick_logits

REFUSED_ARGS = ("pretrained", "weights", "checkpoint_path")
REFUSED_VALUES = ("hf-hub:", "hf_hub:", "local-dir:", "http://", "https://", "file://")


def build_classifier(
    arch: str,
    args: Mapping[str, Any],
    classes: int,
    trusted: Collection[str] = (),
    logits: int | str | None = None,
) -> nn.Module:
    """Build an architecture with fresh weights in eval mode, importing code of libraries and `trusted` factories only.

    `arch` is torchvision:NAME, timm:NAME, transformers:MODEL_TYPE or package.module:factory. If the architecture
    returns more than logits, `logits` names the entry of its output that holds them. Raises ConfigError for a reference
    that would download something or is not trusted, ClassifierError if it cannot be built.
    """
    source, separator, name = arch.partition(":")
    if not separator or not name:
        raise ConfigError(f"arch {arch}: expected torchvision:NAME, timm:NAME, hf:URI or package.module:factory")
    if arch.startswith(FOLDER):
        raise ConfigError(f"{arch}: a folder is for `gradosr fit` alone; a bundle needs none")
    check_args(arch, args)
    try:
        if source in LIBRARIES:
            classifier = LIBRARIES[source].build(name, args, classes)
        else:
            classifier = _factory(arch, trusted)(**args)
    except GradosrError:
        raise
    except Exception as error:  # an architecture may raise anything for arguments it rejects
        if fault := machine_fault(error):
            raise MachineFault(f"{arch}: {fault}") from error
        raise ClassifierError(f"{arch} with args {dict(args)}: {first_line(error)}") from error
    if not isinstance(classifier, nn.Module):
        raise ClassifierError(f"{arch} returns {type(classifier).__name__}; expected a torch.nn.Module")
    if logits is not None:
        pick_logits(classifier, logits)
    return classifier.eval()


def check_args(arch: str, args: Mapping[str, Any]) -> None:
    """Raise ConfigError for a name or an argument that would download or read files."""
    fetching = () if arch.startswith("transformers:") else REFUSED_ARGS  # its models never download anything
    if refused := [key for key in args if key.startswith(fetching)]:
        raise ConfigError(f"{arch}: argument {refused[0]} would fetch or read files; give classifier.weights instead")
    for value in (arch.partition(":")[2], *args.values()):
        if isinstance(value, str) and value.startswith(REFUSED_VALUES):
            raise ConfigError(f"{arch}: {value} would fetch or read files; give classifier.weights instead")


def _factory(arch: str, trusted: Collection[str]) -> Any:
    """Return the callable package.module:factory; like python -m, it can be imported from the working directory."""
    if arch not in trusted:
        raise ConfigError(
            f"{arch}: not trusted; a bundle imports no code unless told: `trust: [{arch}]` in a config, or --set "
            f"'trust=[{arch}]'"
        )
    module, _, name = arch.partition(":")
    import_from_here()
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # importing runs the module's code
        if fault := machine_fault(error):
            raise MachineFault(f"{arch}: {fault}") from error
        raise ConfigError(f"{arch}: cannot be imported: {first_line(error)}; put its folder on PYTHONPATH") from error


def input_size(transform: TransformSettings) -> tuple[int, int]:
    """Return the height and width of the classifier's input, in pixels."""
    size = transform.crop if transform.crop is not None else transform.resize
    if isinstance(size, tuple):
        return size
    return (size or 0, size or 0)


def check_logits(logits_BK: Tensor, classes: int) -> None:
    """Raise ClassifierError if there is not exactly one logit per class."""
    if logits_BK.shape[1] != classes:
        raise ClassifierError(
            f"the classifier gives {logits_BK.shape[1]} logits, but {classes} classes are named; "
            "check classifier.classes and args.num_classes"
        )


def probabilities(logits_BK: Tensor) -> str:
    """Return a warning if a classifier seems to return probabilities; empty if its outputs look like logits.

    Scores are made for logits: of probabilities, they keep the order within an image, but not between images.
    """
    if not len(logits_BK) or logits_BK.min() < 0 or not logits_BK.max() <= 1:
        return ""
    softmax = bool(((logits_BK.sum(1) - 1).abs() < 1e-3).all())
    what = "are never negative and sum to 1: a softmax" if softmax else "all lie in 0..1: a sigmoid or a softmax"
    return (
        f"the outputs of the classifier {what} seems to make them; unknown images are found less well from "
        "probabilities: return the logits before it, or name their entry in classifier.logits"
    )


def normalise(images_BCHW: Tensor, transform: TransformSettings, dtype: torch.dtype = torch.float32) -> Tensor:
    """Turn uint8 pixels into the classifier's input, on their device.

    They are scaled to 0..1; then the mean is subtracted, and the result is divided by the standard deviation.
    """
    mean, std = (_per_channel(values, images_BCHW.device, dtype) for values in (transform.mean, transform.std))
    return (images_BCHW.to(dtype) / 255 - mean) / std


@functools.cache
def _per_channel(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return values as a tensor [3, 1, 1]; cached, because an upload waits for all earlier work on its device."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device, dtype=dtype).view(3, 1, 1)
