"""Interception of every call of a ruled function while a classifier runs, whichever module makes it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from gradosr.gradients.calls import Rule
from gradosr.gradients.rules import RULES

Function = Callable[..., Any]


def _always_open(function: Any) -> Function:
    """Copy a function without its dispatch to a mode, which would hide the calls inside it from the mode."""
    own = {**function.__globals__, "has_torch_function": lambda _: False}
    return FunctionType(function.__code__, own, function.__name__, function.__defaults__)


def _addcmul(x: Tensor, a: Any, b: Any) -> Any:
    return x + a * b


def _biased_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor, scale: float | None = None) -> Any:
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    return ((query * factor) @ key.transpose(-2, -1) + attn_mask).softmax(-1) @ value


def _is_biased(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether attention adds a bias, which may be made of parameters, and uses no other special option."""
    bias = args[3] if len(args) == 4 else kwargs.get("attn_mask")
    usual = not any(kwargs.get(name) for name in ("dropout_p", "is_causal", "enable_gqa"))
    return len(args) <= 4 and usual and isinstance(bias, Tensor) and bias.is_floating_point()


class Composite(NamedTuple):
    """A fused function, and an unfused version of it that makes ruled calls."""

    opened: Function
    applies: Callable[[tuple[Any, ...], dict[str, Any]], bool]
    dropped: tuple[str, ...] = ()
    """Arguments to leave out; `applies` has checked that they have no effect."""


COMPOSITES: dict[Function, Composite] = {
    F.multi_head_attention_forward: Composite(_always_open(F.multi_head_attention_forward), lambda *_: True),
    F.scaled_dot_product_attention: Composite(_biased_attention, _is_biased, ("dropout_p", "is_causal", "enable_gqa")),
    torch.addcmul: Composite(_addcmul, lambda args, kwargs: len(args) == 3 and not kwargs),
}


class Capture(TorchFunctionMode, ABC):
    """A mode that passes every ruled call inside its `with` block to `see`, numbered from 0 in call order."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(
        self, func: Function, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        composite = COMPOSITES.get(func)
        if composite is not None and composite.applies(args, kwargs):
            with self:
                return composite.opened(*args, **{k: v for k, v in kwargs.items() if k not in composite.dropped})
        rule = RULES.get(func)
        if rule is None:
            return func(*args, **kwargs)
        number, self.count = self.count, self.count + 1
        if "input" in kwargs:
            args, kwargs = (kwargs["input"], *args), {k: v for k, v in kwargs.items() if k != "input"}
        return self.see(number, rule, func, args, kwargs)

    @abstractmethod
    def see(self, number: int, rule: Rule, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the call and return its output."""


CACHING = ("timm.", "transformers.")
"""Libraries whose attentions keep tensors that were computed from parameters."""
RECURRENT = {"lstm", "gru", "rnn_tanh", "rnn_relu"}
"""Functions whose backward pass cuDNN does not support in eval mode."""


class _Mended(TorchFunctionMode):
    """Workarounds for two faults of backward passes: BatchNorm's memory layout, and cuDNN's recurrent layers.

    BatchNorm gets a gradient in the memory layout of its input. If the layouts differ (a stem whose output becomes
    tokens), torch's CPU kernel reads the gradient in the wrong order and silently returns wrong gradients: seen in
    torch 2.15, in eval mode, and confirmed by finite differences. Recurrent layers run without cuDNN.
    """

    def __torch_function__(
        self, func: Function, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in RECURRENT:
            with torch.backends.cudnn.flags(enabled=False):
                return func(*args, **(kwargs or {}))
        output = func(*args, **(kwargs or {}))
        if func is F.batch_norm and output.requires_grad:
            x = args[0] if args else (kwargs or {})["input"]
            output.register_hook(partial(_laid_out, x.stride()))
        return output


def _laid_out(strides: tuple[int, ...], grad: Tensor) -> Tensor:
    if grad.stride() == strides:
        return grad
    return torch.empty_strided(grad.shape, strides, dtype=grad.dtype, device=grad.device).copy_(grad)


def run(classifier: nn.Module, images_BCHW: Tensor) -> Any:
    """Return the classifier's output for a copy of the images, since it may modify its input in place.

    Some attention layers (LeViT, EfficientFormer) cache position biases in eval mode. These caches are emptied, because
    a tensor left there by an earlier forward pass is not connected to this pass's parameters.
    """
    _empty_caches(classifier)
    with _Mended():
        output = classifier(images_BCHW.clone())
    _empty_caches(classifier)
    return output


def _empty_caches(classifier: nn.Module) -> None:
    """Empty the caches of libraries' own layers; a table in a layer of the user's may be named a cache as well."""
    for module in classifier.modules():
        if type(module).__module__.startswith(CACHING):
            for name, value in vars(module).items():
                if name.endswith("_cache") and isinstance(value, dict):
                    value.clear()


@contextmanager
def only_requiring_grad(classifier: nn.Module, wanted: Container[str] = ()) -> Iterator[None]:
    """Let gradients flow only to the named parameters; restore the classifier's own flags afterwards."""
    flags = [(parameter, parameter.requires_grad) for parameter in classifier.parameters()]
    try:
        for name, parameter in classifier.named_parameters():
            parameter.requires_grad_(name in wanted)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
