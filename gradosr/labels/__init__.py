"""Labels: which images a person should look at, and what people said of them.

`read_labels` returns every opinion of a run, `verdicts` what they come to per image.
"""

from gradosr.labels.folder import SCHEMA
from gradosr.labels.merging import read_labels
from gradosr.labels.verdicts import KNOWN, UNKNOWN, conflicts, verdicts

__all__ = ["KNOWN", "SCHEMA", "UNKNOWN", "conflicts", "read_labels", "verdicts"]
