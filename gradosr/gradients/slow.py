"""The definition that everything fast is tested against: a batch of one and plain autograd."""

import torch
from torch import Tensor, nn

from gradosr.gradients.capture import run
from gradosr.gradients.objectives import objective as objective_named


def slow_squared_norms(classifier: nn.Module, images_BCHW: Tensor, objective: str = "all_hot") -> Tensor:
    """[B, P] in float64, squared gradient norm of every named parameter, one image at a time (Lee & AlRegib, Eq. 1)."""
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
