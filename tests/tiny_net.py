"""A network small enough for every test: a factory of somebody's own, trusted by name as `tiny_net:tiny`."""

import torch
from torch import Tensor, nn


class Tiny(nn.Module):
    """Logits [B, num_classes] of images [B, 3, 16, 16]."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
            nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def tiny(num_classes: int) -> Tiny:
    return Tiny(num_classes)


class CutOff(Tiny):
    """Its logits know nothing of its parameters."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(x)


def cut_off(num_classes: int) -> CutOff:
    return CutOff(num_classes)


def not_a_module(num_classes: int) -> str:
    return f"{num_classes} classes"
