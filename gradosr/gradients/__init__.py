"""Exact per-image squared gradient norms of every parameter tensor. Imports torch alone."""

from gradosr.gradients.calls import Rule, Watch
from gradosr.gradients.engine import GradientEngine, SquaredNorms, Watcher, squared_norms
from gradosr.gradients.objectives import OBJECTIVES, objective
from gradosr.gradients.outputs import pick_logits
from gradosr.gradients.rules import RULES

__all__ = [
    "OBJECTIVES",
    "RULES",
    "GradientEngine",
    "Rule",
    "SquaredNorms",
    "Watch",
    "Watcher",
    "objective",
    "pick_logits",
    "squared_norms",
]
