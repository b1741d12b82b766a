"""The result schema, and a part in the making.

Footer metadata of a part (JSON values): gradosr.schema_version, gradosr.counts, gradosr.shard (its URI, version and,
unless it is a group, when it was modified, in seconds since 1970), gradosr.fingerprint, gradosr.seconds (by stage;
`write` is what came before the part's own PUT), gradosr.worker, gradosr.software.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gradosr.archive.shards import Shard
from gradosr.errors import StoreError, first_line

SCHEMA_VERSION = 1
STATUSES = ("ok", "empty", "truncated", "not_an_image", "unsupported", "too_large", "non_finite")
STAGES = ("read", "decode", "score", "write")
SPOOL_BYTES = 64 << 20
"""A part larger than this grows on local disk instead of in memory."""
ROW_GROUP = 10_000
"""Rows written at once; fewer where their texts are longer than SPOOL_BYTES together."""
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


def schema(representation: int = 0, features: int = 0) -> pa.Schema:
    """Columns of a part; with the widths of the representation and features where they are stored, else 0."""
    fields = [pa.field(name, kind, nullable=name not in _REQUIRED) for name, kind in _COLUMNS.items()]
    if representation:
        fields.append(pa.field("representation", pa.list_(pa.float32(), representation)))
    if features:
        fields.append(pa.field("features", pa.list_(pa.float16(), features)))
    return pa.schema(fields)


Row = dict[str, Any]


class PartBuilder:
    """One part in the making: rows in input order, nothing visible until it is put."""

    def __init__(self, shard: Shard, columns: pa.Schema) -> None:
        self._shard, self._schema = shard, columns
        self._body = tempfile.SpooledTemporaryFile(SPOOL_BYTES)  # noqa: SIM115 - closed with the part
        self._writer = pq.ParquetWriter(self._body, columns, compression="zstd")
        self._bad_images = tempfile.SpooledTemporaryFile(SPOOL_BYTES)  # noqa: SIM115 - closed with the part
        self._rows: list[Row] = []
        self._letters = 0  # of the texts that come from the archive, and may be as long as it likes
        self.counts: Counter[str] = Counter()

    def add(self, rows: Iterable[Row]) -> None:
        """Append rows; absent columns are null."""
        for row in rows:
            self._rows.append({**row, "shard": self._shard.name, "row": self.counts["rows"]})
            self.counts["rows"] += 1
            self.counts[row["status"]] += 1
            self.counts["unknown"] += bool(row.get("is_unknown"))
            self._letters += sum(len(row.get(name) or "") for name in ("key", "source", "label"))
            if row["status"] != "ok":
                line = json.dumps({name: row.get(name) for name in _BAD_IMAGE})
                with spooled():
                    self._bad_images.write(line.encode() + b"\n")
        if len(self._rows) >= ROW_GROUP or self._letters > SPOOL_BYTES:
            self.flush()

    def flush(self) -> None:
        """Encode the rows so far."""
        if not self._rows:
            return
        arrays = [pa.array([row.get(f.name) for row in self._rows], f.type) for f in self._schema]
        with spooled():
            self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
        self._rows, self._letters = [], 0

    def bad_images(self) -> BinaryIO | None:
        """The rows so far that have no score, one JSON line each, from the beginning; None where all have one."""
        if self.counts["ok"] == self.counts["rows"]:
            return None
        self._bad_images.seek(0)
        return cast("BinaryIO", self._bad_images)

    def finish(self, metadata: Mapping[str, Any]) -> BinaryIO:
        """The whole file from its beginning, with `metadata` and the counts in the footer."""
        self.flush()
        facts = {"gradosr.schema_version": SCHEMA_VERSION, "gradosr.counts": dict(self.counts), **metadata}
        self._writer.add_key_value_metadata({name: json.dumps(value) for name, value in facts.items()})
        with spooled():
            self._writer.close()
        self._body.seek(0)
        return cast("BinaryIO", self._body)

    def close(self) -> None:
        """Drop the memory and the spool files, finished or not."""
        for file in (self._writer, self._body, self._bad_images):
            with suppress(OSError):  # all want to end what is unfinished: the spool disk may be full
                file.close()


@contextmanager
def spooled() -> Iterator[None]:
    """Tells which disk is full: it is another one than the output's."""
    try:
        yield
    except OSError as error:
        advice = "a part too large for memory grows there; make room or set TMPDIR"
        raise StoreError(f"{tempfile.gettempdir()}: {first_line(error)}: {advice}") from error


def stored_values(wanted: str, unknown: np.ndarray, values: np.ndarray | None) -> list[np.ndarray | None]:
    """Per row, what `none | unknown | all` says is stored of an array [B, ...]."""
    if values is None:
        return [None] * len(unknown)
    return [
        value if wanted == "all" or (wanted == "unknown" and flag) else None
        for value, flag in zip(values, unknown, strict=True)
    ]
