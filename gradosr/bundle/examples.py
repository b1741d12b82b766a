"""Known examples: a few held-out known images kept with a bundle, to be shown beside unknown ones. Without torch.

N images, F features.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gradosr.bundle.manifest import EXAMPLES, Manifest, read_body
from gradosr.errors import BundleError, first_line
from gradosr.store import Store, join

PICTURES = 300
"""Number of images that are kept, spread evenly over the classes."""
SIDE = 64
"""Longer side of a picture in pixels."""


@dataclass(frozen=True)
class KnownExamples:
    """Held-out known images of all classes: what is needed to show them and to find the nearest."""

    keys: Sequence[str]
    """Keys in the input that the bundle was fitted to."""
    classes: Sequence[str]
    """Class of each image."""
    pictures: Sequence[bytes | None]
    """JPEG of each image as the classifier sees it, at most SIDE pixels; None if the bundle keeps keys alone."""
    features_NF: NDArray[np.float16]

    def body(self) -> bytes:
        """Return what a bundle stores, a Parquet file."""
        flat = pa.array(np.ascontiguousarray(self.features_NF).ravel(), pa.float16())
        columns = {
            "key": pa.array(self.keys, pa.string()),
            "class": pa.array(self.classes, pa.string()),
            "jpeg": pa.array(self.pictures, pa.binary()),
            "features": pa.FixedSizeListArray.from_arrays(flat, self.features_NF.shape[1]),
        }
        body = io.BytesIO()
        pq.write_table(pa.table(columns), body, compression="zstd")
        return body.getvalue()

    @classmethod
    def of(cls, body: bytes) -> "KnownExamples":
        """Read back a `body`. Raises ValueError or KeyError for one that is damaged."""
        table = pq.ParquetFile(io.BytesIO(body), pre_buffer=False).read(use_threads=False).combine_chunks()
        features = table["features"].combine_chunks()
        flat = features.flatten().to_numpy(zero_copy_only=False)
        keys, classes, pictures = (table[name].to_pylist() for name in ("key", "class", "jpeg"))
        return cls(keys, classes, pictures, flat.reshape(len(table), features.type.list_size))


def read_examples(store: Store, uri: str, manifest: Manifest) -> KnownExamples | None:
    """Read the examples of a bundle; None if it keeps none. Raises BundleError if they are damaged."""
    if EXAMPLES not in manifest.files:
        return None
    try:
        return KnownExamples.of(read_body(store, uri, EXAMPLES, manifest))
    except (ValueError, KeyError) as error:  # pyarrow's errors are such
        raise BundleError(f"{join(uri, EXAMPLES)}: not a file of examples: {first_line(error)}") from error
