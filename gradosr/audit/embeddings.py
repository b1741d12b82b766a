"""The user's own embeddings of images: a Parquet file with the columns `key` and `vector`, whatever made the vectors.

N keys, F values of a vector.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gradosr.errors import InputError, first_line
from gradosr.store import Store

COLUMNS = ("key", "vector")
BATCH = 10_000


def read_embeddings(store: Store, uri: str, keys: Sequence[str]) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Return which of the keys have an embedding [N], and the embeddings of these in order.

    Of the file, no more is held than a batch and what is returned. Raises InputError for a file that holds no
    embeddings, or none of these keys.
    """
    wanted = pa.array(keys, pa.string())
    places: list[NDArray[np.integer]] = []
    vectors: list[NDArray[np.float32]] = []
    with store.open(store.stat(uri)) as body:
        try:
            file = pq.ParquetFile(body, pre_buffer=False)
            if missing := [name for name in COLUMNS if name not in file.schema_arrow.names]:
                raise InputError(f"{uri}: no column {', '.join(missing)}; embeddings have the columns key and vector")
            for batch in file.iter_batches(BATCH, columns=list(COLUMNS), use_threads=False):
                place = pc.index_in(batch["key"].cast(pa.string()), wanted)
                places.append(place.drop_null().to_numpy())
                vectors.append(_values(uri, batch["vector"].filter(place.is_valid())))
        except (pa.ArrowException, ValueError) as error:
            raise InputError(f"{uri}: not a Parquet file of embeddings: {first_line(error)}") from error
    return _in_order(uri, len(keys), places, vectors)


def _values(uri: str, vectors: pa.Array) -> NDArray[np.float32]:
    """Return vectors as an array. Raises InputError if they are not numbers of one length."""
    if not isinstance(vectors.type, pa.ListType | pa.LargeListType | pa.FixedSizeListType):
        raise InputError(f"{uri}: vector is {vectors.type}, not a list of numbers")
    lengths = pc.unique(pc.list_value_length(vectors)).to_pylist()
    if len(lengths) > 1 or None in lengths:
        raise InputError(f"{uri}: vectors of different lengths, or none: {', '.join(map(str, lengths[:3]))}")
    values: NDArray[np.float32] = vectors.flatten().cast(pa.float32()).to_numpy(zero_copy_only=False)
    if not np.isfinite(values).all():
        raise InputError(f"{uri}: a vector holds a value that is not a finite number")
    return values.reshape(len(vectors), lengths[0] if lengths else 0)


def _in_order(
    uri: str, count: int, places: Sequence[NDArray[np.integer]], vectors: Sequence[NDArray[np.float32]]
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    found = [one for one in vectors if len(one)]
    if len(sizes := {one.shape[1] for one in found}) > 1:
        raise InputError(f"{uri}: vectors of different lengths: {', '.join(map(str, sorted(sizes)))}")
    there_N = np.zeros(count, bool)
    if not found:
        if count:
            raise InputError(f"{uri}: none of {count} keys of the run has an embedding; keys are those of its results")
        return there_N, np.empty((0, 0), np.float32)
    places_N, first_N = np.unique(np.concatenate(places), return_index=True)  # of a key that stands twice, the first
    there_N[places_N] = True
    return there_N, np.concatenate(found)[first_N]
