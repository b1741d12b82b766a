"""Sees every call of a ruled function while a classifier runs, whoever makes it."""

from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from gradosr.gradients.calls import Rule
from gradosr.gradients.rules import RULES

Function = Callable[..., Any]


def _always_open(function: Any) -> Function:
    """The same code without its dispatch to a mode, which would take the mode away from the calls inside."""
    own = {**function.__globals__, "has_torch_function": lambda _: False}
    return FunctionType(function.__code__, own, function.__name__, function.__defaults__)


COMPOSITES: dict[Function, Function] = {
    F.multi_head_attention_forward: _always_open(F.multi_head_attention_forward),
}
"""Functions that make ruled calls of their own."""


class Capture(TorchFunctionMode):
    """Inside the `with` block, ruled calls go through `see`, numbered from 0 in call order."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(
        self, func: Function, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in COMPOSITES:
            with self:
                return COMPOSITES[func](*args, **kwargs)
        rule = RULES.get(func)
        if rule is None:
            return func(*args, **kwargs)
        number, self.count = self.count, self.count + 1
        if "input" in kwargs:
            args, kwargs = (kwargs["input"], *args), {k: v for k, v in kwargs.items() if k != "input"}
        return self.see(number, rule, func, args, kwargs)

    def see(self, number: int, rule: Rule, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The call's output."""
        raise NotImplementedError


@contextmanager
def only_requiring_grad(classifier: nn.Module, wanted: Container[str] = ()) -> Iterator[None]:
    """Gradients flow to the named parameters alone; the classifier's own flags come back afterwards."""
    flags = [(parameter, parameter.requires_grad) for parameter in classifier.parameters()]
    try:
        for name, parameter in classifier.named_parameters():
            parameter.requires_grad_(name in wanted)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
