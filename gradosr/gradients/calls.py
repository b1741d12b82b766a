"""Calls of functions that have a rule, the rules themselves, and the arithmetic that rules share.

Legend: B batch, Q maps or positions of one sample that share the parameter (tokens, windows), I/O input and output
features. x and grad have the shape [B, Q, *features]; grad is the gradient of the summed loss.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

CHUNK_BYTES = 64 << 20
"""Largest size of a materialised intermediate, in bytes; a larger batch is processed in pieces."""
PLAUSIBLE = 6
"""Limit of trust in counted work: a form that needs more than this many times the least work is not tried."""
BLOCK = 64
"""Rows and columns of a Gram matrix that are computed at once."""
ELEMENTWISE = 30
"""Multiply-adds of a matrix product that take as long as reading, combining and writing one element."""


@dataclass(frozen=True)
class Call:
    """One call of a function that has a rule, with its arguments by name."""

    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    feature_dims: int
    """Number of trailing dimensions of x and of the output that are not positions."""
    options: Mapping[str, Any] = field(default_factory=dict)
    form: str | None = None
    """Form of the rule to use; None for the one with the least counted work."""

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Parameters of the call by role (weight, bias)."""
        roles = {"weight": self.weight, "bias": self.bias}
        return {role: tensor for role, tensor in roles.items() if tensor is not None}


Gradients = dict[str, Tensor]
"""Per-sample gradient [B, ...] or squared norm [B] by role."""


def _one_form(*_call: Any, **_options: Any) -> list[str]:
    return []


@dataclass(frozen=True)
class Rule:
    """The functions that compute the gradients of one function's parameters."""

    bind: Callable[..., Call | None]
    """Function with the ruled function's own signature that returns a Call, or None if no parameter is served."""
    gradients: Callable[[Call, Tensor, Tensor], Gradients]
    """Per-sample gradients, each [B, *parameter.shape]; used for parameters that several calls share."""
    squared_norms: Callable[[Call, Tensor, Tensor], Gradients]
    """Squared norms, each [B], computed by the cheapest exact form."""
    forms: Callable[..., list[str]] = _one_form
    """Function (call, x, grad, materialised) -> names of the forms worth trying, least counted work first. With
    `materialised`, only forms that compute the gradients themselves. Empty if there is only one way."""
    source: bool = False
    """True if the output is made of the parameter alone, not of a sample."""
    symmetric: bool = False
    """True if either operand may be the parameter; it is bound as the second."""


Watch = Callable[[Rule, tuple[str, ...], Tensor], None]
"""Callback (rule of a call, names of its parameters, gradient of the summed loss at its output [B, Q, *features]),
called when the gradient arrives.

A BatchNorm that is folded into a convolution is reported as the BatchNorm; the convolution itself is not reported."""


def squared_norm(gradient_B: Tensor) -> Tensor:
    """Return the squared L2 norm of each sample, [B]."""
    flat = gradient_B.reshape(len(gradient_B), -1)
    return dot(flat, flat)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which sums of products of a type are accumulated."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product over the last dimension."""
    wide = accumulator(a.dtype)
    product: Tensor = torch.linalg.vecdot(a.to(wide), b.to(wide))
    return product


def chunks(batch: int, bytes_per_sample: int) -> Iterator[slice]:
    """Split the batch into slices that hold at most CHUNK_BYTES each, and at least one sample."""
    step = max(1, CHUNK_BYTES // max(1, bytes_per_sample))
    return (slice(start, start + step) for start in range(0, batch, step))


def plausible(costs: Mapping[str, float]) -> list[str]:
    """Sort names by cost and drop those too expensive to win, even allowing for what counted work ignores."""
    order = sorted(costs, key=lambda name: costs[name])
    return [name for name in order if costs[name] <= PLAUSIBLE * costs[order[0]]]


def channel_sums(grad: Tensor, channel_dim: int) -> Tensor:
    """Sum a gradient [B, Q, ..., channels, ...] over everything but batch and channels."""
    dims = [d for d in range(1, grad.dim()) if d != channel_dim]
    return grad.sum(dims, dtype=accumulator(grad.dtype)) if dims else grad


def gram_squared_norm(x_BQI: Tensor, grad_BQO: Tensor) -> Tensor:
    """Return ||grad^T x||_F^2 per sample, [B], as sum((x x^T) * (grad grad^T)).

    Both Gram matrices are symmetric, so only their lower halves are computed.
    """
    total_B = torch.zeros(len(x_BQI), device=x_BQI.device, dtype=accumulator(x_BQI.dtype))
    for start in range(0, x_BQI.shape[1], BLOCK):
        columns = slice(start, start + BLOCK)
        gram_x = torch.bmm(x_BQI[:, start:], x_BQI[:, columns].transpose(1, 2))
        gram_grad = torch.bmm(grad_BQO[:, start:], grad_BQO[:, columns].transpose(1, 2))
        gram_x[:, BLOCK:] *= 2  # below the diagonal block: counts for its mirror image too
        total_B += dot(gram_x.flatten(1), gram_grad.flatten(1))
    # Rounding can make the Gram product of a vanishing gradient slightly negative.
    return total_B.clamp_min(0)
