"""Exact per-image squared gradient norms of every parameter tensor. This package needs only torch."""

from gradosr.gradients.calls import Rule, Watch
from gradosr.gradients.engine import GradientEngine, Watcher, count_last, squared_norms
from gradosr.gradients.objectives import OBJECTIVES, objective
from gradosr.gradients.outputs import Head, pick_logits
from gradosr.gradients.rules import RULES
from gradosr.gradients.squared_norms import SquaredNorms
from gradosr.gradients.weights import lay_channels_last

__all__ = [
    "OBJECTIVES",
    "RULES",
    "GradientEngine",
    "Head",
    "Rule",
    "SquaredNorms",
    "Watch",
    "Watcher",
    "count_last",
    "lay_channels_last",
    "objective",
    "pick_logits",
    "squared_norms",
]
