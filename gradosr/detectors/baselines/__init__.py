"""Published detectors on the same observation: to measure others against, or to use where one is the best.

All are fitted on the known images that the others are fitted on. Each class names its source. Add one as described in
gradosr.config.detectors.
"""
