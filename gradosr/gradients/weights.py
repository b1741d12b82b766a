"""What weights must be (finite, of the images' type unless the classifier casts for itself) and how they best lie."""

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
    """Raise ClassifierError with the first parameter or BatchNorm statistic that holds a nan or an infinity."""
    # Of the buffers the statistics alone: a mask may hold infinities.
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
    """Lay the weights of 2-D convolutions out in channels-last order, in place: the same numbers for faster kernels.

    Images and activations follow by themselves.
    """
    for parameter in classifier.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


@contextmanager
def told_of_mixed_precision(classifier: nn.Module, images: Tensor) -> Iterator[None]:
    """Torch's refusal to compute with two types becomes a ClassifierError that names the parameters of the other."""
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
