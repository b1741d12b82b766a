"""Exact per-sample gradients of a parameter from one call's input and the gradient at its output.

Rules are keyed by function, not by module: a call is seen wherever it is made, through a module, a
functional call or a wrapper that pads first. Pure functions of (call, x, grad); no state.

Legend: B batch, Q maps or positions of one sample that share the parameter (tokens, windows), I/O
input and output features, C input channels, D unfolded patch (C/groups * kernel), L output places.
x and grad come as [B, Q, *features]; grad is the gradient of the summed loss.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gradosr.errors import ClassifierError

CHUNK_BYTES = 64 << 20
"""Bound on a materialised intermediate; larger batches go through it in pieces."""


@dataclass(frozen=True)
class Call:
    """One call of a ruled function, its arguments under their names."""

    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    feature_dims: int
    """Trailing dimensions of x and of the output that are not positions."""
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def parameters(self) -> dict[str, Tensor]:
        """By role."""
        roles = {"weight": self.weight, "bias": self.bias}
        return {role: tensor for role, tensor in roles.items() if tensor is not None}


Gradients = dict[str, Tensor]
"""Role -> per-sample gradient [B, ...] or squared norm [B]."""


@dataclass(frozen=True)
class Rule:
    """How a function's parameters get their gradients."""

    bind: Callable[..., Call]
    """The function's own signature, to a Call."""
    gradients: Callable[[Call, Tensor, Tensor], Gradients]
    """Per-sample gradients, each [B, *parameter.shape]: for parameters that several calls share."""
    squared_norms: Callable[[Call, Tensor, Tensor], Gradients]
    """Squared norms, each [B], by the cheapest exact form."""


def squared_norm(gradient_B: Tensor) -> Tensor:
    """Squared L2 norm per sample, [B]."""
    flat = gradient_B.flatten(1)
    return _dot(flat, flat)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    product: Tensor = torch.linalg.vecdot(a, b)
    return product


def _chunks(batch: int, bytes_per_sample: int) -> Iterator[slice]:
    step = max(1, CHUNK_BYTES // max(1, bytes_per_sample))
    return (slice(start, start + step) for start in range(0, batch, step))


def _bias_gradient(grad: Tensor, channel_dim: int) -> Tensor:
    """[B, Q, ..., channels, ...] summed over everything but batch and channels."""
    dims = [d for d in range(1, grad.dim()) if d != channel_dim]
    return grad.sum(dims) if dims else grad


# --- Linear ---


def bind_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Call:
    """Of torch.nn.functional.linear."""
    return Call(x, weight, bias, feature_dims=1)


def linear_gradients(call: Call, x: Tensor, grad: Tensor) -> Gradients:
    """Weight [B, O, I], bias [B, O]."""
    gradients = {"weight": torch.bmm(grad.transpose(1, 2), x)}
    return gradients | ({} if call.bias is None else {"bias": grad.sum(1)})


def linear_squared_norms(call: Call, x: Tensor, grad: Tensor) -> Gradients:
    """One position: ||x||^2 ||g||^2. Several: ||g^T x||^2, or sum((x x^T) * (g g^T)) where that is cheaper."""
    norms = {"weight": _product_squared_norm(x, grad)}
    return norms | ({} if call.bias is None else {"bias": squared_norm(grad.sum(1))})


def _product_squared_norm(x_BQI: Tensor, grad_BQO: Tensor) -> Tensor:
    """||grad^T x||_F^2 per sample, [B]."""
    batch, Q, inputs = x_BQI.shape
    outputs = grad_BQO.shape[2]
    if Q == 1:
        return squared_norm(x_BQI) * squared_norm(grad_BQO)
    gram = Q * (inputs + outputs) < inputs * outputs
    size = (2 * Q * Q if gram else inputs * outputs) * x_BQI.element_size()
    return torch.cat([_product_piece(x_BQI[piece], grad_BQO[piece], gram) for piece in _chunks(batch, size)])


def _product_piece(x_BQI: Tensor, grad_BQO: Tensor, gram: bool) -> Tensor:
    if not gram:
        return squared_norm(torch.bmm(grad_BQO.transpose(1, 2), x_BQI))
    gram_x = torch.bmm(x_BQI, x_BQI.transpose(1, 2)).flatten(1)
    gram_grad = torch.bmm(grad_BQO, grad_BQO.transpose(1, 2)).flatten(1)
    # Rounding can leave a Gram product of a vanishing gradient just below zero.
    return _dot(gram_x, gram_grad).clamp_min(0)


# --- Convolution ---


def _bind_conv(dims: int) -> Callable[..., Call]:
    def bind(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | str | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> Call:
        kernel, dilation = weight.shape[2:], _per_axis(dilation, dims)
        x, padding = _explicit_padding(x, padding, kernel, dilation)
        options = {"stride": _per_axis(stride, dims), "padding": padding, "dilation": dilation, "groups": groups}
        return Call(x, weight, bias, feature_dims=dims + 1, options=options)

    return bind


def _per_axis(value: int | Sequence[int], dims: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * dims if len(values) == 1 else values


def _explicit_padding(
    x: Tensor, padding: int | str | Sequence[int], kernel: Sequence[int], dilation: Sequence[int]
) -> tuple[Tensor, list[int]]:
    """Padding as numbers; "same" can be uneven, then x is padded here."""
    dims = len(kernel)
    if not isinstance(padding, str):
        return x, _per_axis(padding, dims)
    if padding == "valid":
        return x, [0] * dims
    total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    sides = [side for t in reversed(total) for side in (t // 2, t - t // 2)]
    return F.pad(x, sides), [0] * dims


def conv_gradients(call: Call, x: Tensor, grad: Tensor) -> Gradients:
    """Weight [B, O, C/groups, *kernel], bias [B, O]; the library's own weight-gradient kernel per sample."""
    if call.weight is None:
        raise ClassifierError("a convolution without a weight")
    rows = [_conv_weight_gradient(call, x[b], grad[b], call.weight) for b in range(x.shape[0])]
    gradients = {"weight": torch.stack(rows)}
    return gradients | ({} if call.bias is None else {"bias": _bias_gradient(grad, 2)})


def _conv_weight_gradient(call: Call, x_QC: Tensor, grad_QO: Tensor, weight: Tensor) -> Tensor:
    options = call.options
    geometry = (options["stride"], options["padding"], options["dilation"])
    wanted = [False, True, False]
    gradient: Tensor = torch.ops.aten.convolution_backward(
        grad_QO, x_QC, weight, None, *geometry, False, [0] * len(options["stride"]), options["groups"], wanted
    )[1]
    return gradient


def conv_squared_norms(call: Call, x: Tensor, grad: Tensor) -> Gradients:
    """Early layers (many places) materialise sample by sample, late ones take the Gram of unfolded patches."""
    if call.weight is None:
        raise ClassifierError("a convolution without a weight")
    if _gram_is_cheaper(call.weight, x, grad, call.options["groups"]):
        weight = _unfolded_squared_norm(call, x, grad, call.weight.shape[2:])
    else:
        rows = [_conv_weight_gradient(call, x[b], grad[b], call.weight) for b in range(x.shape[0])]
        weight = torch.stack([_dot(row.flatten(), row.flatten()) for row in rows])
    return {"weight": weight} | ({} if call.bias is None else {"bias": squared_norm(_bias_gradient(grad, 2))})


def _gram_is_cheaper(weight: Tensor, x: Tensor, grad: Tensor, groups: int) -> bool:
    places, outputs, patch = grad.shape[3:].numel() * grad.shape[1], weight.shape[0], weight.shape[1:].numel()
    return x.dim() == 5 and groups == 1 and 2 * places * (patch + outputs) < patch * outputs


def _unfolded_squared_norm(call: Call, x: Tensor, grad: Tensor, kernel: Sequence[int]) -> Tensor:
    options = call.options
    batch, maps = x.shape[:2]
    size = maps * grad.shape[3:].numel() * x.shape[2] * kernel[0] * kernel[1] * x.element_size()
    pieces = []
    for piece in _chunks(batch, size):
        patches = F.unfold(
            x[piece].flatten(0, 1), tuple(kernel), options["dilation"], options["padding"], options["stride"]
        )
        patches_BLD = patches.transpose(1, 2).reshape(grad[piece].shape[0], -1, patches.shape[1])
        grad_BLO = grad[piece].flatten(3).transpose(2, 3).flatten(1, 2)
        pieces.append(_product_squared_norm(patches_BLD, grad_BLO))
    return torch.cat(pieces)


# --- Normalisation: scale sum(g * xhat), shift sum(g) ---


def bind_batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,  # noqa: ARG001 - of the signature
    eps: float = 1e-5,
) -> Call:
    """Of torch.nn.functional.batch_norm. Raises ClassifierError in training mode."""
    if training or running_mean is None or running_var is None:
        raise ClassifierError(
            "a BatchNorm uses the statistics of its batch: images would influence each other's gradients; "
            "call .eval() and keep track_running_stats on"
        )
    return Call(x, weight, bias, x.dim() - 1, {"mean": running_mean, "var": running_var, "eps": eps})


def batch_norm_gradients(call: Call, x: Tensor, grad: Tensor) -> Gradients:
    """Scale and shift, each [B, C]."""
    mean, var = call.options["mean"], call.options["var"]
    shape = [1, 1, -1] + [1] * (x.dim() - 3)
    scale = _bias_gradient((x - mean.view(shape)) * grad, 2) * torch.rsqrt(var + call.options["eps"])
    return _scale_and_shift(call, scale, _bias_gradient(grad, 2))


def bind_layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Call:
    """Of torch.nn.functional.layer_norm."""
    return Call(x, weight, bias, len(normalized_shape), {"shape": list(normalized_shape), "eps": eps})


def layer_norm_gradients(call: Call, x: Tensor, grad: Tensor) -> Gradients:
    """Scale and shift, each [B, *normalized_shape]."""
    xhat = F.layer_norm(x, call.options["shape"], eps=call.options["eps"])
    return _scale_and_shift(call, (xhat * grad).sum(1), grad.sum(1))


def bind_group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Call:
    """Of torch.nn.functional.group_norm."""
    return Call(x, weight, bias, x.dim() - 1, {"groups": num_groups, "eps": eps})


def group_norm_gradients(call: Call, x: Tensor, grad: Tensor) -> Gradients:
    """Scale and shift, each [B, C]."""
    xhat = F.group_norm(x.flatten(0, 1), call.options["groups"], eps=call.options["eps"]).view_as(x)
    return _scale_and_shift(call, _bias_gradient(xhat * grad, 2), _bias_gradient(grad, 2))


def _scale_and_shift(call: Call, scale: Tensor, shift: Tensor) -> Gradients:
    gradients = {"weight": scale, "bias": shift}
    return {role: gradients[role] for role in call.parameters}


def _norms_of(gradients: Callable[[Call, Tensor, Tensor], Gradients]) -> Callable[[Call, Tensor, Tensor], Gradients]:
    """For parameters so small that the gradient itself costs nothing."""
    return lambda call, x, grad: {role: squared_norm(g) for role, g in gradients(call, x, grad).items()}


RULES: dict[Callable[..., Any], Rule] = {
    F.linear: Rule(bind_linear, linear_gradients, linear_squared_norms),
    F.conv1d: Rule(_bind_conv(1), conv_gradients, conv_squared_norms),
    F.conv2d: Rule(_bind_conv(2), conv_gradients, conv_squared_norms),
    F.batch_norm: Rule(bind_batch_norm, batch_norm_gradients, _norms_of(batch_norm_gradients)),
    F.layer_norm: Rule(bind_layer_norm, layer_norm_gradients, _norms_of(layer_norm_gradients)),
    F.group_norm: Rule(bind_group_norm, group_norm_gradients, _norms_of(group_norm_gradients)),
}
