"""Rules for parameters that are used outside any layer: position embeddings, class tokens, layer scale.

They serve x + p, x - p and x * p, where the parameter p is broadcast over the sample (never the sample over p), and
p.expand(batch, ...) or p.repeat(batch, 1, ...), which turn p alone into a part of every sample.
"""

from typing import Any

from torch import Tensor

from gradosr.gradients.calls import Call, Gradients, accumulator


def bind_pair(x: Any, parameter: Any = None, *rest: Any, **options: Any) -> Call | None:
    """Bind a call of add, sub or mul with a parameter as its second operand.

    Return None if the call has further arguments, or if x is broadcast over the parameter.
    """
    if rest or options or not isinstance(x, Tensor) or not isinstance(parameter, Tensor):
        return None
    features = _own_dims(parameter)
    if x.dim() <= features or any(p not in (1, s) for p, s in zip(_tail(parameter), _tail(x, features), strict=True)):
        return None
    return Call(x, parameter, None, feature_dims=features)


def bind_in_place(x: Any, *rest: Any, **options: Any) -> Call | None:
    """Bind a call of add_ or mul_, keeping a copy of x from before the call."""
    return bind_pair(x.clone() if isinstance(x, Tensor) else x, *rest, **options)


def bind_expand(parameter: Tensor, *_sizes: Any, **_options: Any) -> Call:
    """Bind a call of Tensor.expand."""
    return Call(parameter, parameter, None, feature_dims=_own_dims(parameter))


def bind_repeat(parameter: Tensor, *sizes: Any) -> Call | None:
    """Bind a call of Tensor.repeat, or return None if it repeats more than the batch dimension."""
    times = sizes[0] if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes
    return None if any(size != 1 for size in times[1:]) else bind_expand(parameter)


def _own_dims(parameter: Tensor) -> int:
    """Count a parameter's dimensions without leading ones of size 1; at least one, even for a scalar."""
    if not parameter.dim():
        return 1
    leading = next((i for i, size in enumerate(parameter.shape) if size != 1), parameter.dim() - 1)
    return parameter.dim() - leading


def _tail(tensor: Tensor, dims: int | None = None) -> tuple[int, ...]:
    dims = _own_dims(tensor) if dims is None else dims
    return tuple(tensor.shape[tensor.dim() - dims :]) or (1,)


def sum_gradients(call: Call, _x: Tensor, grad: Tensor) -> Gradients:
    """Return the per-sample gradient of p in x + p, x - p (a norm ignores the sign) and p.expand: [B, *p.shape]."""
    return {"weight": _reduced(call, grad)}


def product_gradients(call: Call, x: Tensor, grad: Tensor) -> Gradients:
    """Return the per-sample gradient of p in x * p: [B, *p.shape]."""
    return {"weight": _reduced(call, x * grad)}


def _reduced(call: Call, grad: Tensor) -> Tensor:
    """Sum a gradient [B, Q, *features] over Q and over the features along which p is broadcast."""
    parameter = call.weight
    if parameter is None:
        return grad
    repeated = [2 + i for i, size in enumerate(_tail(parameter)) if size == 1]
    return grad.sum([1, *repeated], dtype=accumulator(grad.dtype)).reshape(len(grad), *parameter.shape)
