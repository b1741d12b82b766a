"""Sees every call of a ruled function while a classifier runs, whoever makes it."""

from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from gradosr.errors import ClassifierError
from gradosr.gradients.calls import Call, Rule
from gradosr.gradients.rules import RULES


def _always_open(function: Any) -> Callable[..., Any]:
    """The same code without its dispatch to a mode, which would take the mode away from the calls inside."""
    own = {**function.__globals__, "has_torch_function": lambda _: False}
    return FunctionType(function.__code__, own, function.__name__, function.__defaults__)


COMPOSITES: dict[Callable[..., Any], Callable[..., Any]] = {
    F.multi_head_attention_forward: _always_open(F.multi_head_attention_forward),
}
"""Functions that make ruled calls of their own."""


@dataclass(frozen=True)
class Record:
    """One ruled call of a forward pass."""

    rule: Rule
    call: Call
    output: Tensor
    edge: GradientEdge | None
    """Where the gradient at the output is read: taken at once, so that an activation that later works
    in place on the output does not move it. None where the call does not depend on the images."""
    version: int

    def check_input(self) -> None:
        """Raise ClassifierError when the input was overwritten after the call."""
        if self.call.x._version != self.version:
            raise ClassifierError(
                "the classifier overwrites the input of a layer in place after the layer used it; "
                "replace the in-place operation"
            )


class Capture(TorchFunctionMode):
    """Records the ruled calls made inside the `with` block, numbered from 0 in call order.

    `wanted` limits what is kept to those numbers, so that the rest holds no memory.
    """

    def __init__(self, wanted: Container[int] | None = None) -> None:
        super().__init__()
        self.records: dict[int, Record] = {}
        self.count = 0
        self._wanted = wanted

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in COMPOSITES:
            with self:
                return COMPOSITES[func](*args, **kwargs)
        rule = RULES.get(func)
        if rule is None:
            return func(*args, **kwargs)
        number, self.count = self.count, self.count + 1
        if self._wanted is not None and number not in self._wanted:
            return func(*args, **kwargs)
        call = rule.bind(*_input_first(args, kwargs), **{k: v for k, v in kwargs.items() if k != "input"})
        if call is None:
            return func(*args, **kwargs)
        version = call.x._version
        output = func(*args, **kwargs)
        if rule.source:  # no path leads here from the images: the gradient's way begins at the output
            output = output.detach().requires_grad_().clone()
        edge = get_gradient_edge(output) if output.requires_grad else None
        self.records[number] = Record(rule, call, output.detach(), edge, version)
        return output


def _input_first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    return (kwargs["input"], *args) if "input" in kwargs else args


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
