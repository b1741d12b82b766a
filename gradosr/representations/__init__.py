"""What a detector sees of an image. Imports torch and the gradients alone."""

from gradosr.representations.norms import Standardiser, coordinate_names, log_norms, representation

__all__ = ["Standardiser", "coordinate_names", "log_norms", "representation"]
