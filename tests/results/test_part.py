"""Wide columns of a part: lists of numbers, null where they are not stored, for every reader of Parquet."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gradosr.results.part import schema, stored_numbers, wide_column

VALUES = np.arange(15, dtype=np.float16).reshape(5, 3)


@pytest.mark.parametrize("stored", [[1, 1, 1, 1, 1], [0, 1, 0, 0, 1], [0, 0, 0, 0, 0]])
def test_the_stored_numbers_come_back(stored: list[int]) -> None:
    stored_B = np.array(stored, bool)
    column = wide_column(VALUES, stored_B)
    assert column.type == schema(["features"]).field("features").type
    body = io.BytesIO()
    pq.write_table(pa.table({"features": column}), body)
    read = pq.read_table(body)["features"].combine_chunks()
    assert read.to_pylist() == [row if keep else None for row, keep in zip(VALUES.tolist(), stored, strict=True)]
    assert stored_numbers(read).tolist() == VALUES[stored_B].tolist()


def test_no_column_is_of_lists_of_a_fixed_size() -> None:
    """pyarrow before 26 cannot read such a column if some of its lists are null."""
    columns = schema(["representation", "features", "logits"])
    assert [one.name for one in columns if pa.types.is_fixed_size_list(one.type)] == []
    assert columns.field("representation").type == pa.list_(pa.float32())


@pytest.mark.skipif(int(pa.__version__.partition(".")[0]) < 26, reason="older pyarrow cannot write such a column")
def test_parts_of_earlier_versions_are_read() -> None:
    """They have lists of a fixed size."""
    flat = pa.array(VALUES.reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(flat, 3, mask=pa.array([True, False, False, True, False]))
    assert stored_numbers(column).tolist() == VALUES[[1, 2, 4]].tolist()
