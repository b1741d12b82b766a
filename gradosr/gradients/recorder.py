"""Recording of which parameters meet the images in which call, and of the parameters behind each tensor."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import Node

from gradosr.gradients.calls import Call, Rule
from gradosr.gradients.capture import Capture, Function
from gradosr.gradients.passes import Root

EXCHANGED = 1  # an inner image, so that both of its neighbours are checked


class Origins:
    """Lookup of the parameters that a tensor was computed from, read from the autograd graph."""

    def __init__(self, classifier: nn.Module, images: Tensor) -> None:
        self._names = {id(parameter): name for name, parameter in classifier.named_parameters()}
        self._images = images
        self._known: dict[Node, frozenset[str] | None] = {}

    def __call__(self, tensor: Any) -> frozenset[str] | None:
        """Return the names of the parameters that a tensor was computed from.

        Return None if images contributed to it.
        """
        if not isinstance(tensor, Tensor):
            return frozenset()
        if tensor is self._images:
            return None
        if tensor.grad_fn is None:
            return frozenset({self._names[id(tensor)]} if id(tensor) in self._names else ())
        return self._of_node(tensor.grad_fn)

    def _of_node(self, node: Node) -> frozenset[str] | None:
        stack = [node]
        while stack:
            current = stack[-1]
            if current in self._known:
                stack.pop()
                continue
            parents = [parent for parent, _ in current.next_functions if parent is not None]
            if missing := [parent for parent in parents if parent not in self._known]:
                stack.extend(missing)
                continue
            found = [self._known[parent] for parent in parents]
            names = [one for one in found if one is not None]
            leaf = frozenset[str]() if parents else self(getattr(current, "variable", None))
            self._known[current] = None if len(names) < len(found) or leaf is None else leaf.union(*names)
        return self._known[node]


@dataclass(frozen=True)
class Record:
    """One ruled call that combines images and parameters, or that turns a parameter into a part of every sample."""

    function: str
    rule: Rule
    call: Call
    roles: Mapping[str, frozenset[str]]
    """Names of the parameters behind the tensor in each role."""
    output: Tensor
    input: Tensor
    """First argument of the function, unchanged."""
    node: Node | None
    swapped: bool


class Recorder(Capture):
    """A mode that records every ruled call that could serve a parameter."""

    def __init__(self, classifier: nn.Module, images: Tensor, *, exchanged: bool = False) -> None:
        super().__init__()
        self.origins = Origins(classifier, images)
        self.records: dict[int, Record] = {}
        self.images = images
        self._exchanged = exchanged

    def see(self, number: int, rule: Rule, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the call, record it if it could serve a parameter, and return its output."""
        swapped = rule.symmetric and len(args) == 2 and bool(self.origins(args[0]))
        ordered = args[::-1] if swapped else args
        of_parameters = bool(self.origins(ordered[0]))
        call = rule.bind(*ordered, **kwargs) if of_parameters == rule.source else None
        output = func(*args, **kwargs)
        if call is None or not isinstance(output, Tensor):
            return output
        origins = {role: self.origins(tensor) for role, tensor in call.parameters.items()}
        roles = {role: names for role, names in origins.items() if names}
        if not roles or (rule.source and not _becomes_a_batch(call.x, output, len(self.images))):
            return output
        constant = self.origins(call.x) == frozenset() and len(output) == len(self.images)
        if rule.source or constant:  # from here on the output is a part of the samples
            output = Root.apply(self._own_of(output), self.images)
        self.records[number] = Record(
            func.__name__, rule, call, roles, output.detach(), args[0], output.grad_fn, swapped
        )
        return output

    def _own_of(self, source: Tensor) -> Tensor:
        """Give the exchanged image its own version of a tensor that is made of parameters alone.

        The batch can then be located also in calls whose input depends only on, say, a class token.
        """
        if not self._exchanged:
            return source
        own = source.detach().clone()
        own[EXCHANGED] = own[EXCHANGED] * 1.1 + 0.1
        return own


def _becomes_a_batch(parameter: Tensor, output: Tensor, batch: int) -> bool:
    return output.dim() > 1 and len(output) == batch and not (parameter.dim() == output.dim() and len(parameter) > 1)
