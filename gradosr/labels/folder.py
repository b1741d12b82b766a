"""The labels of a run, which lie beside its parts and change none of them.

RUN/labels/labels-TIME-DIGEST.parquet   the opinions of one import; written whole and never changed
RUN/labels/drawn-NNNNNN.json            the images handed out together, and how they were chosen (records.py)

Several people may import and draw at once: files have names of their own, and nothing is ever rewritten.
"""

import hashlib
import io
import json
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gradosr.errors import InputError, NotFound, first_line
from gradosr.results.folder import RunFolder
from gradosr.store import Store, scheme_of

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("shard", pa.string()),
        pa.field("label", pa.string(), nullable=False),
        pa.field("who", pa.string(), nullable=False),
        pa.field("when", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("drawn", pa.float64()),
    ]
)
"""Columns of labels, one row per opinion.

`label` is the name of a known class or of a new one, `known` or `unknown`; `source` is csv, page, label_studio,
fiftyone or table; `drawn` is the probability with which the image was chosen for labelling, null if nobody knows it.
"""


def read_files(store: Store, run_uri: str) -> pa.Table:
    """Return all opinions as they were imported, in order. Raises InputError if a file is damaged."""
    names = sorted(name for name in names_in(store, run_uri) if name.startswith("labels-"))
    return pa.concat_tables([SCHEMA.empty_table(), *(read_file(store, run_uri, name) for name in names)])


def names_in(store: Store, run_uri: str) -> Iterator[str]:
    """Yield the names of the files in RUN/labels; none if there is no such folder."""
    folder = RunFolder(store, run_uri).path("labels", "")
    try:
        yield from (stored.uri[len(folder) :] for stored in store.list(folder))
    except NotFound:
        if scheme_of(run_uri).buckets:
            raise


def read_file(store: Store, run_uri: str, name: str) -> pa.Table:
    """Return the opinions of one import. Raises InputError if the file is damaged."""
    uri = RunFolder(store, run_uri).path("labels", name)
    try:
        table = pq.ParquetFile(io.BytesIO(store.read(uri)), pre_buffer=False).read(use_threads=False)
        return table.select(SCHEMA.names).cast(SCHEMA)
    except (pa.ArrowInvalid, KeyError, ValueError) as error:
        raise InputError(f"{uri}: not a file of labels, or damaged: {first_line(error)}") from error


def write_labels(store: Store, run_uri: str, labels: pa.Table) -> str | None:
    """Add the opinions of one import, whose columns are those of SCHEMA; return the file's name.

    Returns None, and writes nothing, if a file of the same content is there.
    """
    said = labels.drop_columns(["when"]).to_pylist()  # most sources do not tell when, and then it is the import's time
    digest = hashlib.sha256(json.dumps(said).encode()).hexdigest()[:8]
    for name in names_in(store, run_uri):
        same = name.startswith("labels-") and name.endswith(f"-{digest}.parquet")
        if same and read_file(store, run_uri, name).drop_columns(["when"]).to_pylist() == said:
            return None
    name = f"labels-{time_name()}-{digest}.parquet"
    body = io.BytesIO()
    pq.write_table(labels.cast(SCHEMA), body, compression="zstd")
    store.write(RunFolder(store, run_uri).path("labels", name), body.getvalue(), if_absent=True)
    return name


def time_name() -> str:
    """Return the time in UTC as names have it, which sort by time."""
    return datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S.%fZ")


def rows_of(labels: list[dict[str, Any]]) -> pa.Table:
    """Return opinions as a table with the columns of SCHEMA; fields that are absent are null."""
    return pa.Table.from_pylist(labels, SCHEMA)
