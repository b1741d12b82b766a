"""A network small enough for every test: a factory of somebody's own, trusted by name as `tiny_net:tiny`."""

import os
import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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


class Bursting(Tiny):
    """Its logits overflow on white images, and on them alone."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * torch.exp(200 * (x.mean((1, 2, 3)) - 1).relu())[:, None]


def bursting(num_classes: int) -> Bursting:
    return Bursting(num_classes)


class Keyed(Tiny):
    """Its logits come with other things."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        features = self.body(x)
        return {"logits": self.head(features), "features": features}


def keyed(num_classes: int) -> Keyed:
    return Keyed(num_classes)


class Auxiliary(Tiny):
    """Returns more than logits in training mode, as googlenet does."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return (logits, logits) if self.training else logits  # type: ignore[return-value]


def auxiliary(num_classes: int) -> Auxiliary:
    return Auxiliary(num_classes)


class Dropping(Tiny):
    """Drops pixels in eval mode too."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.dropout(x, 0.5, training=True))


def dropping(num_classes: int) -> Dropping:
    return Dropping(num_classes)


class Indifferent(Tiny):
    """Return the same logits for every image."""

    def forward(self, x: Tensor) -> Tensor:
        return 0 * super().forward(x)


def indifferent(num_classes: int) -> Indifferent:
    return Indifferent(num_classes)


def mixed(num_classes: int) -> Tiny:
    net = Tiny(num_classes)
    net.head.double()
    return net


def not_a_module(num_classes: int) -> str:
    return f"{num_classes} classes"


class Sleepy(Tiny):
    """Takes NAP seconds, of the environment, over every image."""

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(len(x) * float(os.environ.get("NAP", "0")))
        return super().forward(x)


def sleepy(num_classes: int) -> Sleepy:
    return Sleepy(num_classes)
