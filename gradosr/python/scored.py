"""Scores of images in Python, one row each."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

import pyarrow as pa
from torch import Tensor

from gradosr.python.pictures import harmless, picture, shown
from gradosr.results.part import schema
from gradosr.text import plural

if TYPE_CHECKING:
    import pandas as pd

SIDE = 96
"""Longer side of a shown picture, in pixels."""
_LEFT_OUT = ("shard", "row", "source")
SCHEMA = pa.schema([one for one in schema() if one.name not in _LEFT_OUT])


def whole(rows: pa.RecordBatch) -> pa.Table:
    """Return rows with every column; one that is absent where no image has pixels is all null."""
    columns = {
        one.name: rows[one.name] if one.name in rows.schema.names else pa.nulls(rows.num_rows, one.type)
        for one in SCHEMA
    }
    return pa.table(columns, schema=SCHEMA)


class Scored(Sequence[dict[str, Any]]):
    """Images that were scored, one row each and in order, with the columns of a table of results."""

    def __init__(self, table: pa.Table, pixels: dict[int, Tensor] | None = None) -> None:
        """Wrap a table; `pixels` are those of some images, by row, to be shown in a notebook."""
        self._table, self._pixels = table, pixels or {}

    def __len__(self) -> int:
        return len(self._table)

    @overload
    def __getitem__(self, place: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, place: slice) -> "Scored": ...
    def __getitem__(self, place: int | slice) -> "dict[str, Any] | Scored":
        """Return the row at a place as a dictionary, or the rows of a slice."""
        places = range(len(self))[place]
        if isinstance(places, int):
            row: dict[str, Any] = self._table.slice(places, 1).to_pylist()[0]
            return row
        pixels = {new: self._pixels[old] for new, old in enumerate(places) if old in self._pixels}
        return Scored(self._table.take(pa.array(places, pa.int64())), pixels)

    def to_arrow(self) -> pa.Table:
        """Return the rows as a table of Arrow."""
        return self._table

    def to_pandas(self) -> "pd.DataFrame":
        """Return the rows as a data frame of pandas, which must be installed."""
        frame: pd.DataFrame = self._table.to_pandas()
        return frame

    def __repr__(self) -> str:
        return f"<gradosr.Scored {self._summary()}>"

    def _summary(self) -> str:
        statuses, over = self._table["status"].to_pylist(), self._table["is_unknown"].to_pylist()
        bad = sum(status != "ok" for status in statuses)
        told = f", {bad:,} without a score" if bad else ""
        return f"{plural(len(self), 'image')}, {sum(map(bool, over)):,} over the threshold{told}"

    def _repr_html_(self) -> str:
        """Return the images of the highest unknown scores as HTML, with their pictures."""
        rows = sorted(self._pixels, key=lambda row: -self[row]["unknown_score"])
        lines = "".join(f"<tr>{_cells(self[row], self._pixels[row])}</tr>" for row in rows)
        head = "<tr><th></th><th>key</th><th>called</th><th>unknown score</th><th>p-value</th></tr>"
        return f"<p>{self._summary()}; the highest scores:</p><table>{head}{lines}</table>"


def _cells(row: dict[str, Any], pixels: Tensor) -> str:
    words = (row["key"], row["open_set_class"], f"{row['unknown_score']:.3f}", f"{row['p_value']:.3g}")
    return f"<td>{shown(picture(pixels, SIDE))}</td>" + "".join(f"<td>{harmless(word)}</td>" for word in words)
