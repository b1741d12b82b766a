"""What a ruled call is, what a rule is, and the arithmetic that rules share.

Legend: B batch, Q maps or positions of one sample that share the parameter (tokens, windows), I/O
input and output features. x and grad come as [B, Q, *features]; grad is the gradient of the summed loss.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

CHUNK_BYTES = 64 << 20
"""Bound on a materialised intermediate; larger batches go through it in pieces."""
PLAUSIBLE = 6
"""How far counted work is trusted: a form of more than so many times the least is not even tried."""
BLOCK = 64
"""Rows and columns of a Gram made at once."""
ELEMENTWISE = 30
"""Multiply-adds of a matrix product that take the time of one element read, combined and written."""


@dataclass(frozen=True)
class Call:
    """One call of a ruled function, its arguments under their names."""

    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    feature_dims: int
    """Trailing dimensions of x and of the output that are not positions."""
    options: Mapping[str, Any] = field(default_factory=dict)
    form: str | None = None
    """Which of the rule's forms to take; None: the one that counted work favours."""

    @property
    def parameters(self) -> dict[str, Tensor]:
        """By role."""
        roles = {"weight": self.weight, "bias": self.bias}
        return {role: tensor for role, tensor in roles.items() if tensor is not None}


Gradients = dict[str, Tensor]
"""Role -> per-sample gradient [B, ...] or squared norm [B]."""


def _one_form(*_call: Any, **_options: Any) -> list[str]:
    return []


@dataclass(frozen=True)
class Rule:
    """How a function's parameters get their gradients."""

    bind: Callable[..., Call | None]
    """The function's own signature, to a Call; None where no parameter is served."""
    gradients: Callable[[Call, Tensor, Tensor], Gradients]
    """Per-sample gradients, each [B, *parameter.shape]: for parameters that several calls share."""
    squared_norms: Callable[[Call, Tensor, Tensor], Gradients]
    """Squared norms, each [B], by the cheapest exact form."""
    forms: Callable[..., list[str]] = _one_form
    """(call, x, grad, materialised) -> names of the forms worth trying, the one that counted work favours first;
    `materialised`: of those alone that make the gradients themselves. None where there is but one way."""
    source: bool = False
    """The output is made of the parameter alone, not of a sample."""
    symmetric: bool = False
    """Either operand may be the parameter; it is bound as the second."""


Watch = Callable[[Rule, tuple[str, ...], Tensor], None]
"""(rule of a call, its parameters by name, gradient of the summed loss at its output [B, Q, *features]) as it arrives.

A BatchNorm that is part of a convolution arrives as the BatchNorm, the convolution itself not at all.
"""


def squared_norm(gradient_B: Tensor) -> Tensor:
    """Squared L2 norm per sample, [B]."""
    flat = gradient_B.reshape(len(gradient_B), -1)
    return dot(flat, flat)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """What sums of products are kept in."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product over the last dimension."""
    wide = accumulator(a.dtype)
    product: Tensor = torch.linalg.vecdot(a.to(wide), b.to(wide))
    return product


def chunks(batch: int, bytes_per_sample: int) -> Iterator[slice]:
    """Slices of the batch that hold at most CHUNK_BYTES each, and at least one sample."""
    step = max(1, CHUNK_BYTES // max(1, bytes_per_sample))
    return (slice(start, start + step) for start in range(0, batch, step))


def plausible(costs: Mapping[str, float]) -> list[str]:
    """Names by cost, as far as what counting cannot see might still turn their order."""
    order = sorted(costs, key=lambda name: costs[name])
    return [name for name in order if costs[name] <= PLAUSIBLE * costs[order[0]]]


def channel_sums(grad: Tensor, channel_dim: int) -> Tensor:
    """[B, Q, ..., channels, ...] summed over everything but batch and channels."""
    dims = [d for d in range(1, grad.dim()) if d != channel_dim]
    return grad.sum(dims, dtype=accumulator(grad.dtype)) if dims else grad


def gram_squared_norm(x_BQI: Tensor, grad_BQO: Tensor) -> Tensor:
    """||grad^T x||_F^2 per sample as sum((x x^T) * (grad grad^T)), [B]; of the symmetric products the lower half."""
    total_B = torch.zeros(len(x_BQI), device=x_BQI.device, dtype=accumulator(x_BQI.dtype))
    for start in range(0, x_BQI.shape[1], BLOCK):
        columns = slice(start, start + BLOCK)
        gram_x = torch.bmm(x_BQI[:, start:], x_BQI[:, columns].transpose(1, 2))
        gram_grad = torch.bmm(grad_BQO[:, start:], grad_BQO[:, columns].transpose(1, 2))
        gram_x[:, BLOCK:] *= 2  # below the diagonal block: for what lies right of it
        total_B += dot(gram_x.flatten(1), gram_grad.flatten(1))
    # Rounding can leave a Gram product of a vanishing gradient just below zero.
    return total_B.clamp_min(0)
