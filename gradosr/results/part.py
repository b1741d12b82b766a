"""The result schema, and the construction of a part.

Footer metadata of a part (JSON values): gradosr.schema_version, gradosr.counts, gradosr.shard (its URI, its version
and, unless it is a group, the time of its last modification in seconds since 1970), gradosr.fingerprint,
gradosr.seconds (by stage; `write` is the time before the part's own PUT), gradosr.passed_over (members of the shard
that are no images, by kind), gradosr.worker, gradosr.software.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gradosr.archive.shards import Shard
from gradosr.store.spool import spooled

SCHEMA_VERSION = 1
EMBEDDING = "embedding"
"""Wide column of the features of a second network."""
STATUSES = ("ok", "empty", "truncated", "not_an_image", "unsupported", "too_large", "non_finite")
STAGES = ("read", "decode", "score", "write")
SPOOL_BYTES = 64 << 20
"""Bytes above which a part grows on local disk instead of in memory."""
ROW_GROUP = 10_000
"""Rows written at once; fewer if they take more than SPOOL_BYTES together."""
_COLUMNS: dict[str, pa.DataType] = {
    "key": pa.string(),
    "source": pa.string(),
    "shard": pa.string(),
    "row": pa.int32(),
    "status": pa.string(),
    "error": pa.string(),
    "width": pa.int32(),
    "height": pa.int32(),
    "predicted_class": pa.string(),
    "predicted_index": pa.int32(),
    "confidence": pa.float32(),
    "max_logit": pa.float32(),
    "energy": pa.float32(),
    "unknown_score": pa.float32(),
    "p_value": pa.float32(),
    "is_unknown": pa.bool_(),
    "open_set_class": pa.string(),
    "label": pa.string(),
}
_REQUIRED = ("key", "shard", "row", "status")
_BAD_IMAGE = ("key", "source", "status", "error")


def schema(wide: Collection[str] = ()) -> pa.Schema:
    """Return the columns of a part, given the names of its wide columns, which hold a list of numbers per row.

    The representation is float32; the signals, one of which are the features, and the embedding are float16.
    """
    fields = [pa.field(name, kind, nullable=name not in _REQUIRED) for name, kind in _COLUMNS.items()]
    fields += [pa.field(name, pa.list_(pa.float32() if name == "representation" else pa.float16())) for name in wide]
    return pa.schema(fields)


def wide_column(values_BN: NDArray[np.floating], stored_B: NDArray[np.bool_]) -> pa.ListArray:
    """Return rows of N numbers as a column, null where they are not stored.

    All lists have N numbers, but their type does not say so: pyarrow before 26 cannot read columns of lists of a fixed
    size some of which are null.
    """
    ends_B = np.cumsum(stored_B, dtype=np.int32) * np.int32(values_BN.shape[1])
    offsets = pa.array(np.insert(ends_B, 0, 0), pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(values_BN[stored_B].reshape(-1)), mask=pa.array(~stored_B))


def stored_numbers(column: pa.Array) -> NDArray[np.floating]:
    """Return the numbers of the rows of a wide column that are not null, [S, N]; of earlier versions' parts, too."""
    lists = column.drop_null()
    numbers: NDArray[np.floating] = lists.flatten().to_numpy(zero_copy_only=False)
    return numbers.reshape(len(lists), -1) if len(lists) else numbers.reshape(0, 0)


class PartBuilder:
    """A part under construction: rows in input order, none of them visible until the part is published."""

    def __init__(self, shard: Shard, columns: pa.Schema) -> None:
        self._shard, self._schema = shard, columns
        self._body = tempfile.SpooledTemporaryFile(SPOOL_BYTES)  # noqa: SIM115 - closed with the part
        self._writer = pq.ParquetWriter(self._body, columns, compression="zstd")
        self._bad_images = tempfile.SpooledTemporaryFile(SPOOL_BYTES)  # noqa: SIM115 - closed with the part
        self._waiting: list[pa.RecordBatch] = []
        self.counts: Counter[str] = Counter()

    def add(self, rows: pa.RecordBatch) -> None:
        """Append rows; absent columns become null, `shard` and `row` are filled in."""
        size, first = rows.num_rows, self.counts["rows"]
        columns = dict(zip(rows.schema.names, rows.columns, strict=True))
        columns |= {
            "shard": pa.repeat(self._shard.name, size),
            "row": pa.array(np.arange(first, first + size, dtype=np.int32)),
        }
        arrays = [
            columns[field.name] if field.name in columns else pa.nulls(size, field.type) for field in self._schema
        ]
        self._waiting.append(pa.RecordBatch.from_arrays(arrays, schema=self._schema))
        self._count(self._waiting[-1])
        if (
            sum(batch.num_rows for batch in self._waiting) >= ROW_GROUP
            or sum(batch.nbytes for batch in self._waiting) > SPOOL_BYTES
        ):
            self.flush()

    def _count(self, rows: pa.RecordBatch) -> None:
        self.counts["rows"] += rows.num_rows
        self.counts["unknown"] += pc.sum(rows["is_unknown"]).as_py() or 0
        self.counts.update(rows["status"].to_pylist())
        bad_images = rows.filter(pc.not_equal(rows["status"], "ok")).select(_BAD_IMAGE)
        with spooled():
            self._bad_images.writelines(json.dumps(row).encode() + b"\n" for row in bad_images.to_pylist())

    def flush(self) -> None:
        """Encode the rows added so far, as one row group."""
        if not self._waiting:
            return
        with spooled():
            self._writer.write_table(pa.Table.from_batches(self._waiting))
        self._waiting = []

    def bad_images(self) -> BinaryIO | None:
        """Return the rows so far without a score, one JSON line each, from the start; None if every row has a score."""
        if self.counts["ok"] == self.counts["rows"]:
            return None
        self._bad_images.seek(0)
        return cast("BinaryIO", self._bad_images)

    def finish(self, metadata: Mapping[str, Any]) -> BinaryIO:
        """Return the whole file from its start, with `metadata` and the counts in the footer."""
        self.flush()
        facts = {"gradosr.schema_version": SCHEMA_VERSION, "gradosr.counts": dict(self.counts), **metadata}
        self._writer.add_key_value_metadata({name: json.dumps(value) for name, value in facts.items()})
        with spooled():
            self._writer.close()
        self._body.seek(0)
        return cast("BinaryIO", self._body)

    def close(self) -> None:
        """Release memory and temporary files, whether or not the part was finished."""
        for file in (self._writer, self._body, self._bad_images):
            with suppress(OSError):  # closing writes what is left, and the temporary disk may be full
                file.close()
