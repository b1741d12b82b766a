"""Exact per-image squared gradient norms of every parameter tensor. Imports torch alone."""

from gradosr.gradients.engine import GradientEngine, SquaredNorms, squared_norms
from gradosr.gradients.objectives import OBJECTIVES, objective
from gradosr.gradients.outputs import pick_logits

__all__ = ["OBJECTIVES", "GradientEngine", "SquaredNorms", "objective", "pick_logits", "squared_norms"]
