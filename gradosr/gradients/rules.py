"""The table of rules: a parameter's exact per-sample gradients from one call's input and output gradient.

Rules are keyed by function, not by module, so that a call is found wherever it is made: through a module, a functional
call, or a wrapper that pads first. Rules are pure functions of (call, x, grad). Legend in calls.py.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gradosr.errors import ClassifierError
from gradosr.gradients.broadcast import (
    bind_expand,
    bind_in_place,
    bind_pair,
    bind_repeat,
    product_gradients,
    sum_gradients,
)
from gradosr.gradients.calls import (
    BLOCK,
    ELEMENTWISE,
    Call,
    Gradients,
    Rule,
    accumulator,
    channel_sums,
    chunks,
    gram_squared_norm,
    plausible,
    squared_norm,
)
from gradosr.gradients.convolution import (
    FUSED_GRAM,
    FUSED_PRODUCT,
    conv_forms,
    conv_gradients,
    conv_squared_norms,
    fused_forms,
    fused_squared_norm,
    place_sums,
)
from gradosr.gradients.geometry import Geometry, bind_conv
from gradosr.gradients.kernels import fused_kernels

PLANE = 16
"""Smallest number of places in a map for which a kernel per channel is faster than passes over the whole tensor."""

# --- Linear ---


def bind_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Call:
    """Bind a call of torch.nn.functional.linear."""
    return Call(x, weight, bias, feature_dims=1)


def linear_gradients(call: Call, x: Tensor, grad: Tensor) -> Gradients:
    """Return the per-sample gradients of weight [B, O, I] and bias [B, O]."""
    gradients = {"weight": torch.bmm(grad.transpose(1, 2), x)}
    return gradients | ({} if call.bias is None else {"bias": _sum(grad)})


def linear_forms(_call: Call, x: Tensor, grad: Tensor, *, materialised: bool) -> list[str]:
    """Return the names of the forms worth trying: the product g^T x, or the Gram form sum((x x^T) * (g g^T)).

    The Gram form gives only the norm, not the gradient. For a single position there is only one way.
    """
    Q, inputs, outputs = x.shape[1], x.shape[2], grad.shape[2]
    if Q == 1 or materialised:
        return []
    if fused_kernels(x):
        return fused_forms(_tokens(x, grad), x)
    costs = {"product": inputs * outputs, "Gram": Q * (inputs + outputs + ELEMENTWISE) / 2}
    return plausible(costs)


def _tokens(x: Tensor, grad: Tensor) -> Geometry:
    """Describe a linear layer as a convolution in which every token is a map with one place."""
    one, none = (1, 1), (0, 0)
    return Geometry(
        x.shape[1], x.shape[2], grad.shape[2], 1, one, one, kernel=one, stride=one, padding=none, dilation=one
    )


def linear_squared_norms(call: Call, x: Tensor, grad: Tensor) -> Gradients:
    """Return the squared norms of weight and bias, each [B].

    For one position the weight's is ||x||^2 ||g||^2; for several, the product or the Gram form, whichever is cheaper.
    """
    norms = {"weight": _linear_weight(call, x, grad)}
    return norms | ({} if call.bias is None else {"bias": squared_norm(place_sums(grad))})


def _linear_weight(call: Call, x: Tensor, grad: Tensor) -> Tensor:
    Q, inputs, outputs = x.shape[1], x.shape[2], grad.shape[2]
    if Q == 1:
        return squared_norm(x) * squared_norm(grad)
    form = call.form or linear_forms(call, x, grad, materialised=False)[0]
    if form in (FUSED_PRODUCT, FUSED_GRAM):
        return fused_squared_norm(form, _tokens(x, grad), x, grad)
    if form == "Gram":
        size, norm = 4 * min(Q, BLOCK) * Q, gram_squared_norm
    else:
        size, norm = inputs * outputs, _product_squared_norm
    return torch.cat([norm(x[piece], grad[piece]) for piece in chunks(len(x), size * x.element_size())])


def _sum(tensor_BQ: Tensor) -> Tensor:
    """Sum over the positions, giving [B, *features]."""
    return tensor_BQ.sum(1, dtype=accumulator(tensor_BQ.dtype))


def _product_squared_norm(x_BQI: Tensor, grad_BQO: Tensor) -> Tensor:
    return squared_norm(torch.bmm(grad_BQO.transpose(1, 2), x_BQI))


# --- Normalisation: scale sum(g * xhat), shift sum(g) ---


def bind_batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Call:
    """Bind a call of torch.nn.functional.batch_norm. Raise ClassifierError in training mode."""
    if training or running_mean is None or running_var is None:
        raise ClassifierError(
            "a BatchNorm uses the statistics of its batch: images would influence each other's gradients; "
            "call .eval() and keep track_running_stats on"
        )
    return Call(x, weight, bias, x.dim() - 1, {"mean": running_mean, "var": running_var, "eps": eps})


def batch_norm_gradients(call: Call, x: Tensor, grad: Tensor) -> Gradients:
    """Return the per-sample gradients of scale and shift, each [B, C]."""
    if kernels := fused_kernels(x):
        scale, shift = kernels.centred_sums(grad, x, call.options["mean"])
    else:
        scale, shift = (_sums_in_one_pass if _is_planar(x, grad) else _sums)(call, x, grad)
    return _scale_and_shift(call, scale * torch.rsqrt(call.options["var"].to(scale.dtype) + call.options["eps"]), shift)


def _sums(call: Call, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Return sum(g * (x - mean)) and sum(g), each [B, C]."""
    mean = call.options["mean"].view([1, 1, -1] + [1] * (x.dim() - 3))
    return channel_sums((x - mean) * grad, 2), channel_sums(grad, 2)


def _sums_in_one_pass(call: Call, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Return sum(g * (x - mean)) and sum(g), each [B, C], from one call of the library's kernel for a whole batch.

    It treats every channel of every sample as a channel of its own.
    """
    batch, maps, channels = x.shape[:3]
    wide = accumulator(x.dtype)
    one = torch.ones(batch * maps * channels, device=x.device, dtype=wide)
    mean = call.options["mean"].to(wide).repeat(batch * maps)
    gx, gg = (tensor.to(wide).reshape(1, batch * maps * channels, -1) for tensor in (x, grad))
    _, scale, shift = torch.ops.aten.native_batch_norm_backward(
        gg, gx, None, mean, one, None, None, False, 0.0, [False, True, True]
    )
    return scale.view(batch, maps, channels).sum(1), shift.view(batch, maps, channels).sum(1)


def _is_planar(x: Tensor, grad: Tensor) -> bool:
    """Return whether every channel is a contiguous plane in CPU memory, large enough for a kernel per channel."""
    return not x.is_cuda and x.is_contiguous() and grad.is_contiguous() and x.shape[3:].numel() >= PLANE


def bind_layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Call:
    """Bind a call of torch.nn.functional.layer_norm."""
    return Call(x, weight, bias, len(normalized_shape), {"shape": list(normalized_shape), "eps": eps})


def layer_norm_gradients(call: Call, x: Tensor, grad: Tensor) -> Gradients:
    """Return the per-sample gradients of scale and shift, each [B, *normalized_shape]."""
    if x.dim() == 3 and (kernels := fused_kernels(x)):
        return _scale_and_shift(call, *kernels.normalised_sums(grad, x, call.options["eps"]))
    xhat = F.layer_norm(x, call.options["shape"], eps=call.options["eps"])
    return _scale_and_shift(call, _sum(xhat * grad), _sum(grad))


def bind_rms_norm(
    x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Call:
    """Bind a call of torch.nn.functional.rms_norm."""
    return Call(x, weight, None, len(normalized_shape), {"shape": list(normalized_shape), "eps": eps})


def rms_norm_gradients(call: Call, x: Tensor, grad: Tensor) -> Gradients:
    """Return the per-sample gradient of the scale, [B, *normalized_shape]."""
    return {"weight": _sum(F.rms_norm(x, call.options["shape"], eps=call.options["eps"]) * grad)}


def bind_group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Call:
    """Bind a call of torch.nn.functional.group_norm."""
    return Call(x, weight, bias, x.dim() - 1, {"groups": num_groups, "eps": eps})


def group_norm_gradients(call: Call, x: Tensor, grad: Tensor) -> Gradients:
    """Return the per-sample gradients of scale and shift, each [B, C]."""
    xhat = F.group_norm(x.flatten(0, 1), call.options["groups"], eps=call.options["eps"]).view_as(x)
    return _scale_and_shift(call, channel_sums(xhat * grad, 2), channel_sums(grad, 2))


def _scale_and_shift(call: Call, scale: Tensor, shift: Tensor) -> Gradients:
    gradients = {"weight": scale, "bias": shift}
    return {role: gradients[role] for role in call.parameters}


def _norms_of(gradients: Callable[[Call, Tensor, Tensor], Gradients]) -> Callable[[Call, Tensor, Tensor], Gradients]:
    """Make a squared-norms function from a gradients function, for parameters so small that gradients are cheap."""
    return lambda call, x, grad: {role: squared_norm(g) for role, g in gradients(call, x, grad).items()}


_sum_norms, _product_norms = _norms_of(sum_gradients), _norms_of(product_gradients)
RULES: dict[Callable[..., Any], Rule] = {
    F.linear: Rule(bind_linear, linear_gradients, linear_squared_norms, linear_forms),
    F.conv1d: Rule(bind_conv(1), conv_gradients, conv_squared_norms, conv_forms),
    F.conv2d: Rule(bind_conv(2), conv_gradients, conv_squared_norms, conv_forms),
    F.batch_norm: Rule(bind_batch_norm, batch_norm_gradients, _norms_of(batch_norm_gradients)),
    F.layer_norm: Rule(bind_layer_norm, layer_norm_gradients, _norms_of(layer_norm_gradients)),
    F.rms_norm: Rule(bind_rms_norm, rms_norm_gradients, _norms_of(rms_norm_gradients)),
    F.group_norm: Rule(bind_group_norm, group_norm_gradients, _norms_of(group_norm_gradients)),
    **dict.fromkeys(
        (Tensor.add, Tensor.sub, torch.add, torch.sub), Rule(bind_pair, sum_gradients, _sum_norms, symmetric=True)
    ),
    **dict.fromkeys((Tensor.mul, torch.mul), Rule(bind_pair, product_gradients, _product_norms, symmetric=True)),
    **dict.fromkeys(
        (Tensor.add_, Tensor.__iadd__, Tensor.sub_, Tensor.__isub__), Rule(bind_in_place, sum_gradients, _sum_norms)
    ),
    **dict.fromkeys((Tensor.mul_, Tensor.__imul__), Rule(bind_in_place, product_gradients, _product_norms)),
    **dict.fromkeys((Tensor.expand, Tensor.expand_as), Rule(bind_expand, sum_gradients, _sum_norms, source=True)),
    Tensor.repeat: Rule(bind_repeat, sum_gradients, _sum_norms, source=True),
}
