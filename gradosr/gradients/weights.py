"""Requirements on weights (finite, and of the images' type unless the classifier casts) and their memory layout."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn

from gradosr.errors import ClassifierError

CASTS = {
    torch.float64: ".double()",
    torch.float32: ".float()",
    torch.float16: ".half()",
    torch.bfloat16: ".bfloat16()",
}


def check_finite(classifier: nn.Module) -> None:
    """Raise ClassifierError naming the first parameter or BatchNorm statistic that holds a nan or an infinity."""
    # Of the buffers, only statistics are checked: a mask may hold infinities.
    statistics = (
        (name, buffer) for name, buffer in classifier.named_buffers() if name.endswith(("running_mean", "running_var"))
    )
    tensors = dict(chain(classifier.named_parameters(), statistics))
    flags = [tensor.detach().isfinite().all() for tensor in tensors.values()]
    for name, finite in zip(tensors, torch.stack(flags).tolist() if flags else [], strict=True):
        if not finite:
            raise ClassifierError(
                f"{name} holds values that are not finite: no image could be scored; "
                "its training diverged or its file is damaged, use other weights"
            )


def lay_channels_last(classifier: nn.Module) -> None:
    """Convert the weights of 2-D convolutions to channels-last order, in place: the same numbers, but faster kernels.

    Images and activations adopt the order from the weights.
    """
    for parameter in classifier.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


@contextmanager
def told_of_mixed_precision(classifier: nn.Module, images: Tensor) -> Iterator[None]:
    """Convert torch's error about mixed types to a ClassifierError.

    It names the parameters whose type differs from that of the images.
    """
    try:
        yield
    except RuntimeError as error:
        others = {
            name: parameter.dtype
            for name, parameter in classifier.named_parameters()
            if parameter.is_floating_point() and parameter.dtype != images.dtype
        }
        if not others or "type" not in str(error):  # "expected scalar type", "the same dtype", "Input type (float)"
            raise
        dtype = next(iter(others.values()))
        names = [name for name, other in others.items() if other == dtype]
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise ClassifierError(
            f"mixed precision: {shown} of {_name(dtype)} and images of {_name(images.dtype)}; "
            f"call {CASTS.get(images.dtype, '.to()')} on the classifier, or cast where they meet"
        ) from error


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
