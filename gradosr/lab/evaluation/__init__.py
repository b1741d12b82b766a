"""How well unknown images are found: of one run's rows, or by a protocol over several classifiers and detectors."""
