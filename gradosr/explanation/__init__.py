"""Explanations: why an image is unknown, by the parts of its score, its gradients, and a map of where in it that is."""

from gradosr.explanation.explainer import Explainer, Explanation, Measured

__all__ = ["Explainer", "Explanation", "Measured"]
