"""Parameters that meet a sample outside any layer: position embeddings, class tokens, layer scale.

x + p, x - p and x * p, with the parameter p broadcast over the sample (never the sample over p), and
p.expand(batch, ...) or p.repeat(batch, 1, ...), which makes a sample's part out of p alone.
"""

from typing import Any

from torch import Tensor

from gradosr.gradients.calls import Call, Gradients, accumulator


def bind_pair(x: Any, parameter: Any = None, *rest: Any, **options: Any) -> Call | None:
    """Of add, sub and mul; None where that is not all there is, or x is broadcast over the parameter."""
    if rest or options or not isinstance(x, Tensor) or not isinstance(parameter, Tensor):
        return None
    features = _own_dims(parameter)
    if x.dim() <= features or any(p not in (1, s) for p, s in zip(_tail(parameter), _tail(x, features), strict=True)):
        return None
    return Call(x, parameter, None, feature_dims=features)


def bind_in_place(x: Any, *rest: Any, **options: Any) -> Call | None:
    """Of add_ and mul_: what x was before."""
    return bind_pair(x.clone() if isinstance(x, Tensor) else x, *rest, **options)


def bind_expand(parameter: Tensor, *_sizes: Any, **_options: Any) -> Call:
    """Of Tensor.expand."""
    return Call(parameter, parameter, None, feature_dims=_own_dims(parameter))


def bind_repeat(parameter: Tensor, *sizes: Any) -> Call | None:
    """Of Tensor.repeat, where that is an expansion."""
    times = sizes[0] if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes
    return None if any(size != 1 for size in times[1:]) else bind_expand(parameter)


def _own_dims(parameter: Tensor) -> int:
    """Dimensions of a parameter less the leading ones of size 1; at least one, of a number too."""
    if not parameter.dim():
        return 1
    leading = next((i for i, size in enumerate(parameter.shape) if size != 1), parameter.dim() - 1)
    return parameter.dim() - leading


def _tail(tensor: Tensor, dims: int | None = None) -> tuple[int, ...]:
    dims = _own_dims(tensor) if dims is None else dims
    return tuple(tensor.shape[tensor.dim() - dims :]) or (1,)


def sum_gradients(call: Call, _x: Tensor, grad: Tensor) -> Gradients:
    """Of x + p, x - p (whose sign no norm sees) and p.expand: [B, *p.shape]."""
    return {"weight": _reduced(call, grad)}


def product_gradients(call: Call, x: Tensor, grad: Tensor) -> Gradients:
    """Of x * p: [B, *p.shape]."""
    return {"weight": _reduced(call, x * grad)}


def _reduced(call: Call, grad: Tensor) -> Tensor:
    """[B, Q, *features] summed over Q and over the features along which p is broadcast."""
    parameter = call.weight
    if parameter is None:
        return grad
    repeated = [2 + i for i, size in enumerate(_tail(parameter)) if size == 1]
    return grad.sum([1, *repeated], dtype=accumulator(grad.dtype)).reshape(len(grad), *parameter.shape)
