"""A trusted factory whose network can kill its process, as a crashing native kernel does, or refuse a node."""

import os
import signal

import torch
from tiny_net import Tiny
from torch import Tensor

POISON = 254
"""An image of this value alone kills the worker that scores it."""


class Fatal(Tiny):
    """Tiny, except for what is poison to it."""

    def forward(self, x: Tensor) -> Tensor:
        poison = torch.full_like(x[:1], (POISON / 255 - 0.5) / 0.25)
        if torch.isclose(x, poison).flatten(1).all(1).any():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


def fatal(num_classes: int) -> Fatal:
    if "GRADOSR_TEST_UNLOADABLE" in os.environ:
        raise RuntimeError("this node lacks a driver")
    return Fatal(num_classes)
