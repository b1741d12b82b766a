"""Evaluation of how well unknown images are found, from one run's rows or by a protocol over several detectors."""
