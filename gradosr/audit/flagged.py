"""flagged.parquet: the flagged rows of a table in its order, written in a second pass with constant memory."""

from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gradosr.audit.rows import THREADS, OpenPart, RunTable, id_of
from gradosr.errors import StoreError, first_line, system_reason
from gradosr.store.threads import threads

_DESCRIBED = ("key", "shard", "row", "label", "predicted_class", "confidence", "unknown_score", "p_value")
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        *(pa.field(name, pa.string()) for name in ("key", "shard")),
        pa.field("row", pa.int32()),
        *(pa.field(name, pa.string()) for name in ("label", "predicted_class")),
        *(pa.field(name, pa.float32()) for name in ("confidence", "unknown_score", "p_value")),
        pa.field("group", pa.string()),
    ]
)
LARGE = 200_000
"""Number of rows above which a part is not read ahead, but one row group at a time when its turn comes."""


def check_folder(folder: Path) -> None:
    """Create the folder if needed, and raise StoreError before any work starts if it cannot be written."""
    probe = folder / "probe.writing"
    with written(folder):
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()


def write_flagged(table: RunTable, cut: float | None, group_of: Mapping[str, str], target: Path) -> None:
    """Write the rows with p_value <= cut (or, if it is None, those with is_unknown); the file appears once complete."""
    temporary = target.with_suffix(".writing")
    try:
        with written(target), pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer:
            for rows in _in_order(table, cut):
                writer.write_table(_with_ids(rows, group_of))
        with written(target):
            temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Raise StoreError that names the path if the disk refuses to take something."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path}: cannot be written: {system_reason(error) or first_line(error)}") from error


def _in_order(table: RunTable, cut: float | None) -> Iterator[pa.Table]:
    """Yield the flagged rows part by part while the next few parts are being read."""
    with threads(THREADS, "flagged") as pool:
        ahead: list[tuple[str, Future[list[pa.Table] | None]]] = []
        for part in [*table.parts, *[""] * (2 * THREADS)]:
            if part:
                ahead.append((part, pool.submit(_read_ahead, table, part, cut)))
            if ahead and (len(ahead) > 2 * THREADS or not part):
                name, future = ahead.pop(0)
                found = future.result()
                yield from _read(table, name, cut) if found is None else found


def _read_ahead(table: RunTable, part: str, cut: float | None) -> list[pa.Table] | None:
    """Return the flagged rows of a part, or None if the part is too large to hold in memory."""
    with table.open(part) as opened:
        return list(_flagged(opened, cut)) if opened.file.metadata.num_rows <= LARGE else None


def _read(table: RunTable, part: str, cut: float | None) -> Iterator[pa.Table]:
    with table.open(part) as opened:
        yield from _flagged(opened, cut)


def _flagged(opened: OpenPart, cut: float | None) -> Iterator[pa.Table]:
    column = "is_unknown" if cut is None else "p_value"
    for number, values in opened.groups([column]):
        chosen = values[column] if cut is None else pc.less_equal(values[column], pa.scalar(cut, pa.float32()))
        if pc.any(chosen).as_py():
            yield opened.group(number, _DESCRIBED).filter(chosen)


def _with_ids(rows: pa.Table, group_of: Mapping[str, str]) -> pa.Table:
    ids = [id_of(key) for key in rows["key"].to_pylist()]
    columns = {"id": ids, **{name: rows[name] for name in _DESCRIBED}, "group": [group_of.get(one) for one in ids]}
    return pa.table(
        [pa.array(columns[f.name], f.type) if isinstance(columns[f.name], list) else columns[f.name] for f in SCHEMA],
        SCHEMA,
    )
