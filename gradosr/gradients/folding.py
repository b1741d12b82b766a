"""Folding of a BatchNorm in eval mode into the convolution before it.

With s = gamma / sqrt(var + eps) per output channel, BatchNorm(conv(x, W, c)) = conv(x, s W, s (c - mean) + beta). This
saves one pass over the activations in each direction. All norms follow from the gradient g at that output and the
materialised G = g A^T (A is the unfolded input); the convolution's own output is not needed:

    dW = s G        dc = s sum(g)        dbeta = sum(g)        dgamma = (<W, G> + (c - mean) sum(g)) / sqrt(var + eps)
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gradosr.gradients.calls import Call, Gradients, accumulator, dot, squared_norm
from gradosr.gradients.convolution import FUSED_PRODUCT, place_sums, weight_gradients
from gradosr.gradients.geometry import geometry_of, weight_of
from gradosr.gradients.kernels import fused_kernels


@dataclass(frozen=True)
class Fold:
    """A BatchNorm call, described by the names of its tensors."""

    batch_norm: int
    """Number of the BatchNorm's call."""
    mean: str
    var: str
    eps: float
    weight: str | None = None
    bias: str | None = None

    @property
    def names(self) -> dict[str, str]:
        """Parameter by role ("scale", "shift"), for the roles that exist."""
        roles = {"scale": self.weight, "shift": self.bias}
        return {role: name for role, name in roles.items() if name is not None}


@dataclass(frozen=True)
class Folded:
    """A convolution that includes its BatchNorm. O output channels; symbols as in the module docstring."""

    weight: Tensor
    """The weight s W."""
    bias_O: Tensor
    scale_O: Tensor
    """The factor s."""
    offset_O: Tensor
    """The difference c - mean."""
    rstd_O: Tensor
    made_of: tuple[tuple[int, int], ...]
    """Identity and version of every tensor that went into the folded weight."""


def versions(tensors: Mapping[str, Tensor], fold: Fold, call: Call) -> tuple[tuple[int, int], ...]:
    """Return a value that changes whenever a folded weight must be computed again."""
    names = (fold.mean, fold.var, *fold.names.values())
    parts = [*call.parameters.values(), *(tensors[name] for name in names)]
    return tuple((id(part), part._version) for part in parts)


def folded(tensors: Mapping[str, Tensor], fold: Fold, call: Call) -> Folded:
    """Return a convolution equal to the given one followed by its BatchNorm."""
    weight, wide = weight_of(call), accumulator(call.x.dtype)
    part = {name: tensors[name].detach().to(wide) for name in (fold.mean, fold.var, *fold.names.values())}
    with torch.no_grad():
        rstd_O = torch.rsqrt(part[fold.var] + fold.eps)
        scale_O = rstd_O if fold.weight is None else rstd_O * part[fold.weight]
        offset_O = -part[fold.mean] if call.bias is None else call.bias.to(wide) - part[fold.mean]
        bias_O = offset_O * scale_O if fold.bias is None else torch.addcmul(part[fold.bias], offset_O, scale_O)
        both = weight.to(wide) * scale_O.view(-1, *[1] * (weight.dim() - 1))
    return Folded(
        both.to(weight.dtype), bias_O.to(weight.dtype), scale_O, offset_O, rstd_O, versions(tensors, fold, call)
    )


def folded_squared_norms(call: Call, x: Tensor, grad: Tensor, *, both: Folded, fold: Fold) -> Gradients:
    """Return the squared norms [B] of the convolution's weight and bias and of the BatchNorm's "scale" and "shift"."""
    weight, sums_BO = weight_of(call), place_sums(grad)
    if call.form == FUSED_PRODUCT and (kernels := fused_kernels(x)):
        rows = kernels.products(geometry_of(call, x, grad), x, grad, weight)
        made: Gradients = kernels.folded_norms(*rows, sums_BO, both.scale_O, both.offset_O, both.rstd_O)
        return {role: made[role] for role in ("weight", *call.parameters, *fold.names)}
    squares, products = [], []
    for gradients_BOD in weight_gradients(call, x, grad):
        squares.append(dot(gradients_BOD, gradients_BOD))
        products.append(dot(gradients_BOD, weight.flatten(1)))
    squares_BO, products_BO = torch.cat(squares), torch.cat(products)
    norms = {"weight": squares_BO @ both.scale_O.square()}
    if call.bias is not None:
        norms["bias"] = squared_norm(sums_BO * both.scale_O)
    if fold.weight is not None:
        norms["scale"] = squared_norm(torch.addcmul(products_BO, sums_BO, both.offset_O) * both.rstd_O)
    if fold.bias is not None:
        norms["shift"] = squared_norm(sums_BO)
    return norms


def convolve(call: Call, both: Folded) -> Tensor:
    """Return the output of the folded convolution."""
    function = F.conv2d if call.weight is not None and call.weight.dim() == 4 else F.conv1d
    kernels = fused_kernels(call.x)
    output: Tensor = function(call.x, both.weight, None if kernels else both.bias_O, **call.options)
    return kernels.add_bias(output, both.bias_O) if kernels else output
