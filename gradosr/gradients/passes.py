"""A forward pass of a classifier under its plan, and backward passes that convert gradients to norms as they arrive.

Only the norms of a gradient are kept, so a backward pass needs no more memory than that of a training step. Legend: B
batch, K classes.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradosr.errors import ClassifierError
from gradosr.gradients.calls import Call, Rule, Watch, channel_sums, chunks, squared_norm
from gradosr.gradients.capture import Capture, Function, only_requiring_grad, run
from gradosr.gradients.folding import Folded, convolve, folded, folded_squared_norms, versions
from gradosr.gradients.forms import Forms
from gradosr.gradients.outputs import Head, checked_logits
from gradosr.gradients.plan import Plan, Use
from gradosr.gradients.rules import RULES


class Root(torch.autograd.Function):
    """The start of the autograd graph, at the output of a planned call that depends on no other planned call.

    Neither the images nor earlier operations take part in the backward pass.
    """

    @staticmethod
    def forward(_context: Any, output: Tensor, _anchor: Tensor) -> Tensor:
        """Return the output, detached from the operations that made it."""
        return output.detach()

    @staticmethod
    def backward(_context: Any, _grad: Tensor) -> tuple[None, None]:
        """End the backward pass here."""
        return None, None


@dataclass(frozen=True)
class _Record:
    """One planned call of a pass."""

    rule: Rule
    call: Call
    version: int
    both: Folded | None
    """The folded convolution, if the call is one with its BatchNorm folded in."""


@dataclass(frozen=True)
class Kept:
    """Results that a pass leaves for later passes of the same plan."""

    folded: dict[int, Folded] = field(default_factory=dict)
    """Folded convolutions by call number."""
    forms: Forms = field(default_factory=Forms)


class Pass(Capture):
    """One forward pass, followed by one call of `backward` per objective."""

    def __init__(self, plan: Plan, classifier: nn.Module, kept: Kept) -> None:
        super().__init__()
        self._plan, self._classifier, self._kept = plan, classifier, kept
        self._tensors: dict[str, Tensor] = {**dict(classifier.named_parameters()), **dict(classifier.named_buffers())}
        self._names = {id(tensor): name for name, tensor in self._tensors.items()}
        self._anchor = torch.zeros((), requires_grad=True)
        self._records: dict[int, _Record] = {}
        self._last = False
        self._watches: Sequence[Watch] = ()
        self._norms: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros(()))
        self.features_BF: Tensor | None = None
        self.middle_BM: Tensor | None = None
        self.head: Head | None = None
        self._batch = 0

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return the logits [B, K].

        Raise ClassifierError if the classifier makes other calls than planned.
        """
        self._batch = len(images_BCHW)
        with only_requiring_grad(self._classifier, self._plan.derived), self:
            logits_BK = forward(self._classifier, images_BCHW)
        if self._plan.uses and self.count != self._plan.calls:
            raise _other_path()
        return logits_BK

    def see(self, number: int, rule: Rule, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the call and return its output; if the call is planned, register a hook for its gradient."""
        if number in self._plan.folded:  # folded into the convolution before it
            return args[0]
        use = self._plan.uses.get(number)
        if number == self._plan.penultimate:
            self.features_BF, self.head = args[0].detach(), _head(rule.bind(*args, **kwargs))
        if use is None:
            return func(*args, **kwargs)
        call = rule.bind(*(args[1::-1] if use.swapped else args), **kwargs)
        if call is None or not self._serves(use, call):
            raise _other_path()
        if number == self._plan.middle:
            x = batch_first(call.x.detach(), call.feature_dims, use.before, self._batch)
            self.middle_BM = channel_sums(x, 2) / x[0, :, 0].numel()
        if rule is RULES[F.linear] and not call.x.is_contiguous():
            # With a frozen weight torch computes one product per position; for a contiguous input, a single product.
            args = (call.x.contiguous(), *args[1:])
        both = self._folded(number, use, call)
        version = call.x._version
        output: Tensor = func(*args, **kwargs) if both is None else convolve(call, both)
        if not use.wanted:
            return output
        if rule.source or not call.x.requires_grad:
            output = Root.apply(output, self._anchor)
        if output.requires_grad:
            output.register_hook(partial(self._arrived, number))
            self._records[number] = _Record(rule, call, version, both)
        return output

    def _serves(self, use: Use, call: Call) -> bool:
        return all(self._names.get(id(call.parameters.get(role))) == name for role, name in use.names.items()) and all(
            role in call.parameters and (call.parameters[role].requires_grad or not use.wanted) for role in use.derived
        )

    def _folded(self, number: int, use: Use, call: Call) -> Folded | None:
        if use.fold is None:
            return None
        both = self._kept.folded.get(number)
        if both is None or both.made_of != versions(self._tensors, use.fold, call):
            both = self._kept.folded[number] = folded(self._tensors, use.fold, call)
        return both

    def bytes_of(self, images_BCHW: Tensor) -> int:
        """Return the bytes that a pass over these images holds at once.

        This is all that the backward pass needs, plus a quarter. The bytes are counted, not measured, so the result is
        the same on every device.
        """
        held: dict[int, int] = {}

        def hold(tensor: Tensor) -> None:
            """Count a tensor and keep nothing: an output that its own node kept would never be freed."""
            storage = tensor.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()

        with torch.autograd.graph.saved_tensors_hooks(hold, lambda nothing: nothing):
            self.forward(images_BCHW)
        for record in self._records.values():
            hold(record.call.x)
        self.close()
        own = {tensor.untyped_storage().data_ptr() for tensor in self._tensors.values()}
        own |= {both.weight.untyped_storage().data_ptr() for both in self._kept.folded.values()}
        return sum(size for pointer, size in held.items() if pointer not in own) * 5 // 4

    def close(self) -> None:
        """Drop the records of this pass, whatever became of it.

        They hold tensors whose graph holds the hooks that hold this pass. A part of that cycle lies in C++, where
        Python's garbage collector cannot see it: all that a failed pass had allocated would stay allocated.
        """
        self._records.clear()

    def backward(self, loss: Tensor, *, last: bool = True, watches: Sequence[Watch] = ()) -> dict[str, Tensor]:
        """Return the squared norms [B] of the gradients of a summed loss, by parameter name.

        Parameters that received no gradient are left out.
        """
        self._last, self._norms, self._watches = last, {}, watches
        self._sums.clear()
        if loss.requires_grad and self._records:
            torch.autograd.grad(loss, [self._anchor], retain_graph=not last, allow_unused=True)
        return self._norms | {name: squared_norm(value) for name, value in self._sums.items()}

    def _arrived(self, number: int, grad: Tensor) -> None:
        """Process the gradient at the output of a call."""
        record = self._records.pop(number) if self._last else self._records[number]
        if record.call.x._version != record.version:
            raise input_overwritten()
        use, call = self._plan.uses[number], record.call
        g = batch_first(grad, call.feature_dims, use.before, self._batch)
        x = g if record.rule.source else batch_first(call.x.detach(), call.feature_dims, use.before, self._batch)
        for watch in self._watches:
            watch(*_seen_as(use, record.rule), g)
        if use.derived or self._plan.shared.intersection(use.names.values()):
            self._per_sample(use, record, x, g)
            return
        names = dict(use.names)
        norms_of = record.rule.squared_norms
        if record.both is not None and use.fold is not None:
            names |= use.fold.names
            norms_of = partial(folded_squared_norms, both=record.both, fold=use.fold)
        forms = partial(record.rule.forms, call, x, g, materialised=use.fold is not None)
        norms = self._kept.forms.fastest(
            number, forms, lambda form, some: norms_of(replace(call, form=form), x[some], g[some]), g
        )
        self._norms |= {name: norms[role] for role, name in names.items()}

    def _per_sample(self, use: Use, record: _Record, x: Tensor, g: Tensor) -> None:
        """Compute per-sample gradients themselves.

        They are needed for parameters with several uses, and for parameters from which other tensors are computed.
        """
        size = sum(tensor.numel() for tensor in record.call.parameters.values()) * x.element_size()
        parts: dict[str, list[Tensor]] = defaultdict(list)
        for piece in chunks(self._batch, size):
            gradients = record.rule.gradients(record.call, x[piece], g[piece])
            found = [(name, gradients[role]) for role, name in use.names.items()]
            for role, names in use.derived.items():
                found += self._pulled_back(record.call.parameters[role], names, gradients[role])
            for name, gradient in found:
                parts[name].append(gradient if name in self._plan.shared else squared_norm(gradient))
        for name, values in parts.items():
            if name in self._plan.shared:
                self._sums[name] = self._sums[name] + torch.cat(values)
            else:
                self._norms[name] = torch.cat(values)

    def _pulled_back(self, derived: Tensor, names: tuple[str, ...], gradient_B: Tensor) -> list[tuple[str, Tensor]]:
        """Return per-sample gradients of the parameters behind a derived tensor, from one batched backward pass."""
        gradients = torch.autograd.grad(
            derived,
            [self._tensors[name] for name in names],
            gradient_B.to(derived.dtype),
            is_grads_batched=True,
            retain_graph=True,
        )
        return list(zip(names, gradients, strict=True))


def _head(call: Call | None) -> Head | None:
    if call is None or call.weight is None:
        return None
    weight_KF = call.weight.detach()
    return Head(weight_KF, weight_KF.new_zeros(len(weight_KF)) if call.bias is None else call.bias.detach())


def _seen_as(use: Use, rule: Rule) -> tuple[Rule, tuple[str, ...]]:
    """Return the rule and parameters of the layer to whose output a gradient belongs."""
    return (rule, use.parameters) if use.fold is None else (RULES[F.batch_norm], tuple(use.fold.names.values()))


def _other_path() -> ClassifierError:
    return ClassifierError(
        "the classifier calls other layers for this batch than for a batch it was tried with; "
        "its path must not depend on pixels or on the size of the batch"
    )


def input_overwritten() -> ClassifierError:
    """Return the error for a classifier that even autograd could not train."""
    return ClassifierError(
        "the classifier overwrites the input of a layer in place after the layer used it; "
        "replace the in-place operation"
    )


def forward(classifier: nn.Module, images_BCHW: Tensor) -> Tensor:
    """Return the logits [B, K]. Raise ClassifierError if the output is anything else."""
    return checked_logits(run(classifier, images_BCHW), len(images_BCHW))


NO_MEMORY = ("allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether torch, CUDA, cuBLAS or cuDNN failed to allocate memory."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in NO_MEMORY)


def batch_first(tensor: Tensor, feature_dims: int, before: int, batch: int) -> Tensor:
    """Reshape [positions including the batch, *features] to [B, Q, *features].

    The result is a view if the batch comes first.
    """
    features = tensor.shape[tensor.dim() - feature_dims :]
    positions = math.prod(tensor.shape[: tensor.dim() - feature_dims])
    after = positions // (before * batch)
    return tensor.reshape(before, batch, after, *features).transpose(0, 1).reshape(batch, before * after, *features)
