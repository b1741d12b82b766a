"""Files of labels: a spreadsheet's CSV, the page's, Label Studio's export, FiftyOne's, and tables of other tools.

A reader returns `Said` rows and does not know the run: keys and names are checked in importing.py.
"""

import io
import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gradosr.errors import InputError, first_line
from gradosr.labels import exports, sheets
from gradosr.labels.said import Said, in_utc
from gradosr.store import Store, join


def read(store: Store, file: str) -> list[Said]:
    """Read a file of labels, whatever wrote it. Raises InputError if it is none of the known forms, or damaged."""
    if Path(file).is_dir():
        file = join(file, "samples.json" if Path(file, "samples.json").exists() else "labels.json")
    body = store.read(file)
    if body[:4] == b"PAR1":
        return list(_from_parquet(file, body))
    if body.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"[", b"{"):
        return list(exports.read(file, _json(file, body)))
    return list(sheets.read(file, body))


def _json(file: str, body: bytes) -> Any:
    try:
        return json.loads(body.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not JSON: {first_line(error)}") from error


def _from_parquet(file: str, body: bytes) -> Iterator[Said]:
    try:
        table = pq.ParquetFile(io.BytesIO(body), pre_buffer=False).read(use_threads=False)
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        raise InputError(f"{file}: not a Parquet file, or damaged: {first_line(error)}") from error
    if missing := {"key", "label"} - set(table.column_names):
        raise InputError(f"{file}: has no column {' and no column '.join(sorted(missing))}")
    wanted = [name for name in ("key", "label", "who", "when", "drawn") if name in table.column_names]
    for number, row in enumerate(table.select(wanted).to_pylist(), start=1):
        yield _checked(f"{file}, row {number}", row)


def _checked(where: str, row: Mapping[str, Any]) -> Said:
    texts = {name: row.get(name) for name in ("key", "label", "who")}
    for name, value in texts.items():
        if value is not None and not isinstance(value, str):
            raise InputError(f"{where}: {name} is {value!r}, not text")
    if row.get("when") is not None and not isinstance(row["when"], datetime):
        raise InputError(f"{where}: when is {row['when']!r}, not a time")
    return Said(
        where, texts["key"] or "", texts["label"] or "", texts["who"], in_utc(row.get("when")), "table",
        drawn=sheets.probability(where, row.get("drawn")),
    )  # fmt: skip
