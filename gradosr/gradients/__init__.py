"""Exact per-image squared gradient norms of every parameter tensor. Imports torch alone."""

from gradosr.gradients.engine import GradientEngine, SquaredNorms, squared_norms
from gradosr.gradients.objectives import OBJECTIVES, objective

__all__ = ["OBJECTIVES", "GradientEngine", "SquaredNorms", "objective", "squared_norms"]
