"""The reference that all fast code is tested against: plain autograd on batches of one."""

import torch
from torch import Tensor, nn

from gradosr.gradients.capture import run
from gradosr.gradients.objectives import objective as objective_named


def slow_squared_norms(classifier: nn.Module, images_BCHW: Tensor, objective: str = "all_hot") -> Tensor:
    """Return the squared gradient norm of every named parameter, [B, P] in float64, computed one image at a time.

    Source: Lee & AlRegib, Eq. 1.
    """
    loss = objective_named(objective)
    flags = [p.requires_grad for p in classifier.parameters()]
    classifier.requires_grad_(True)
    rows = []
    for image in images_BCHW:
        value = loss(run(classifier, image[None])).sum()
        gradients = torch.autograd.grad(value, list(classifier.parameters()), allow_unused=True)
        rows.append([0.0 if g is None else g.pow(2).sum().item() for g in gradients])
    for parameter, flag in zip(classifier.parameters(), flags, strict=True):
        parameter.requires_grad_(flag)
    return torch.tensor(rows, dtype=torch.float64)
