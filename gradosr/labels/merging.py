"""All labels of a run with the probabilities with which their images were chosen."""

import pyarrow as pa

from gradosr.labels.estimates import probabilities
from gradosr.labels.folder import SCHEMA, read_files
from gradosr.labels.records import read_rounds
from gradosr.store import Store


def read_labels(store: Store, run_uri: str) -> pa.Table:
    """Return all opinions on a run's images in the order in which they were imported, with the columns of SCHEMA.

    `drawn` is what the rounds so far come to together (drawing.py): the weights 1 / drawn of all labelled images, over
    their sum, estimate shares of the whole table. For images that no round handed out it is what their file told, and
    null if it told nothing. Raises InputError if a file is damaged; a run without labels has no rows.
    """
    labels = read_files(store, run_uri)
    keys = labels["key"].to_pylist()
    found = probabilities(read_rounds(store, run_uri), set(keys))
    drawn = [found.get(key, told) for key, told in zip(keys, labels["drawn"].to_pylist(), strict=True)]
    place = SCHEMA.get_field_index("drawn")
    return labels.set_column(place, SCHEMA.field(place), pa.array(drawn, pa.float64()))
