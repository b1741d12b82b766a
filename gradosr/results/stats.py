"""Counts and seconds of the parts of a table, in columns: a million parts take some tens of megabytes.

`part`; `counts.NAME` and `seconds.STAGE`, null where a part has none; `passed_over`, a JSON object or null. This is
also the content of stats.parquet.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Set
from itertools import islice
from typing import BinaryIO, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gradosr.archive.names import count
from gradosr.results.outcome import PartStats

_COUNTS, _SECONDS = "counts.", "seconds."
_AT_ONCE = 10_000  # parts that are Python objects at a time


class TableStats:
    """The counts and seconds of parts, each of which is there once."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    @classmethod
    def of(cls, parts: Mapping[str, PartStats]) -> "TableStats":
        """Put the figures of parts into columns."""
        left = iter(parts.items())
        tables = [_table({})]
        while some := dict(islice(left, _AT_ONCE)):
            tables.append(_table(some))
        return cls(pa.concat_tables(tables, promote_options="default"))

    @classmethod
    def read(cls, file: BinaryIO) -> "TableStats":
        """Read stats.parquet. Raises ArrowInvalid or KeyError if it is damaged."""
        table = pq.ParquetFile(file, pre_buffer=False).read(use_threads=False)
        return cls(table.select(["part", *(name for name in table.column_names if name != "part")]))

    def write(self, file: BinaryIO) -> None:
        """Write stats.parquet."""
        pq.write_table(self._table, file, compression="zstd")

    def __len__(self) -> int:
        return len(self._table)

    @property
    def parts(self) -> list[str]:
        """The names of the parts."""
        return cast("list[str]", self._table["part"].to_pylist())

    def only(self, parts: Set[str]) -> "TableStats":
        """Keep the parts with these names."""
        starts, names = range(0, len(self), _AT_ONCE), self._table["part"]
        kept = [name in parts for start in starts for name in names.slice(start, _AT_ONCE).to_pylist()]
        return self if all(kept) else TableStats(self._table.filter(pa.array(kept, pa.bool_())))

    def plus(self, *others: "TableStats") -> "TableStats":
        """Add other parts, and sort all by name."""
        table = pa.concat_tables((self._table, *(other._table for other in others)), promote_options="default")
        names = table["part"]
        in_order = pc.all(pc.less_equal(names[:-1], names[1:])).as_py()
        return TableStats(table if in_order else table.sort_by("part"))

    def counts(self) -> dict[str, int]:
        """Add up the counts: rows, unknown, and one per status."""
        return {name: int(total) for name, total in self._totals(_COUNTS)}

    def seconds(self) -> dict[str, float]:
        """Add up the seconds by stage."""
        return dict(self._totals(_SECONDS))

    def passed_over(self) -> dict[str, int]:
        """Add up the members that are no images, by kind."""
        kinds = Counter[str]()
        for found in pc.value_counts(self._table["passed_over"].drop_null()).to_pylist():
            for kind, number in json.loads(found["values"]).items():
                count(kind, kinds, number * found["counts"])
        return dict(kinds)

    def with_bad_images(self) -> set[str]:
        """Return the names of the parts with an image that has no score."""
        bad = pc.greater(self._count("rows"), self._count("ok"))
        return set(self._table["part"].filter(bad).to_pylist())

    def _count(self, name: str) -> pa.ChunkedArray | pa.Array:
        column = _COUNTS + name
        if column in self._table.column_names:
            return pc.fill_null(self._table[column], 0)
        return pa.repeat(pa.scalar(0, pa.int64()), len(self))

    def _totals(self, prefix: str) -> Iterable[tuple[str, float]]:
        for column in self._table.column_names:
            if column.startswith(prefix) and (total := pc.sum(self._table[column]).as_py()) is not None:
                yield column.removeprefix(prefix), total


def _table(parts: Mapping[str, PartStats]) -> pa.Table:
    columns: dict[str, pa.Array] = {"part": pa.array(parts, pa.string())}
    for prefix, place, kind in ((_COUNTS, 0, pa.int64()), (_SECONDS, 1, pa.float64())):
        for name in dict.fromkeys(name for stats in parts.values() for name in stats[place]):
            columns[prefix + name] = pa.array((stats[place].get(name) for stats in parts.values()), kind)
    others = (json.dumps(stats.passed_over) if stats.passed_over else None for stats in parts.values())
    return pa.table({**columns, "passed_over": pa.array(others, pa.string())})
