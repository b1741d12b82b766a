"""Reader of Parquet files with one image per row; only the image's bytes and path and the label are read.

A row group is read page by page, however large it is. A page cannot be divided and takes twice its size in memory while
it is read; writers that check the page size only every 1,024 values, such as pyarrow, make pages of a thousand images.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

import pyarrow as pa
from pyarrow import parquet, types

from gradosr.archive.image import EMPTY, MAX_ENCODED, EncodedImage, Fault, label_of, too_large
from gradosr.archive.shards import Shard
from gradosr.config import ParquetInput
from gradosr.errors import InputError, ShardUnreadable, StoreError, machine_fault
from gradosr.store import Store
from gradosr.text import reason

_BATCH_ROWS = 4  # as fast as 64 (20 us a row), but a dictionary may hold one huge value for every row of a batch
_PATH_ALONE = Fault(
    EMPTY.status,
    "no bytes, only a path, which is not followed: save the file with its images in it "
    "(datasets: ds.with_format('arrow').map(embed_table_storage, batched=True))",
)
_BUFFER_BYTES = 4 * 2**20  # by default pyarrow reads a row group's column whole, often gigabytes of images


def read(
    shard: Shard, store: Store, source: ParquetInput, label_names: tuple[str, ...] | None
) -> Iterator[EncodedImage]:
    """Read the rows in order. Keys are SHARD#ROW, with rows counted from 0 through the file; null images are `empty`.

    Raises ShardUnreadable if the file is not Parquet, lacks a column or is cut off: without the footer at its end, no
    row of a Parquet file can be read.
    """
    with _opened(shard, store, source) as file:
        _check_columns(shard, file, source)
        for group in range(file.num_row_groups):
            for row, (data, path, label) in _rows(shard, file, group, source):
                yield _image(shard, row, data, label_of(label, label_names), path)


def pick(shard: Shard, store: Store, source: ParquetInput, keys: frozenset[str]) -> Iterator[EncodedImage]:
    """Read the rows with these keys: only row groups that hold such a row are read, up to the last one in each."""
    numbers = (key.removeprefix(f"{shard.name}#") for key in keys)
    wanted = {int(number) for number in numbers if number.isdecimal() and len(number) < 19}
    with _opened(shard, store, source) as file:
        _check_columns(shard, file, source)
        for group in range(file.num_row_groups):
            first = sum(file.metadata.row_group(before).num_rows for before in range(group))
            here = {row for row in wanted if first <= row < first + file.metadata.row_group(group).num_rows}
            rows = _rows(shard, file, group, source)
            while here:
                row, (data, path, _) = next(rows)
                if row in here:
                    here.remove(row)
                    yield _image(shard, row, data, None, path)


def _rows(
    shard: Shard, file: parquet.ParquetFile, group: int, source: ParquetInput
) -> Iterator[tuple[int, tuple[pa.Buffer | None, str | None, str | None]]]:
    """Read a row group: for each row its number, counted through the file, and its image bytes, path and label."""
    first = sum(file.metadata.row_group(before).num_rows for before in range(group))
    values = (value for batch in _batches(shard, file, group, source) for value in _values(batch, source))
    return enumerate(values, first)


def _image(shard: Shard, row: int, data: pa.Buffer | None, label: str | None, path: str | None) -> EncodedImage:
    refused = _refusal(data, path)
    image = b"" if data is None or refused else data.to_pybytes()
    return EncodedImage(f"{shard.name}#{row}", image, label, path, refused)


def check(shard: Shard, store: Store, source: ParquetInput) -> None:
    """Raise InputError, with the names of all columns, if a column of `source` is missing or has an unsuitable type.

    A damaged file raises nothing, since it says nothing about the settings: it is quarantined when it is scored.
    """
    with suppress(ShardUnreadable), _opened(shard, store, source) as file:
        if fault := _misfit(file.schema_arrow, source):
            raise InputError(f"{shard.uri}: {fault}")


def images_in(shard: Shard, store: Store, source: ParquetInput) -> int:
    """Return the number of rows that the footer states."""
    with _opened(shard, store, source) as file:
        return int(file.metadata.num_rows)


def _check_columns(shard: Shard, file: parquet.ParquetFile, source: ParquetInput) -> None:
    if fault := _misfit(file.schema_arrow, source):
        raise ShardUnreadable(f"{shard.uri}: {fault}")


@contextmanager
def _opened(shard: Shard, store: Store, source: ParquetInput) -> Iterator[parquet.ParquetFile]:
    with store.open(shard.stored) as stream:
        with unreadable(shard.uri, "not a Parquet file"):
            file = _file(stream)
            if _is_dictionary(file.schema_arrow, source.image_column):
                file = _file(stream, _without_arrow_schema(stream))
        yield file


def _file(stream: BinaryIO, metadata: parquet.FileMetaData | None = None) -> parquet.ParquetFile:
    file = parquet.ParquetFile(stream, metadata=metadata, pre_buffer=False, buffer_size=_BUFFER_BYTES)
    _ = file.schema_arrow.names  # which is read here and now
    return file


def _is_dictionary(schema: pa.Schema, column: str) -> bool:
    if schema.get_field_index(column) < 0:
        return False
    kind = schema.field(column).type
    kind = kind.field("bytes").type if types.is_struct(kind) and _has(kind, "bytes") else kind
    return bool(types.is_dictionary(kind))


def _without_arrow_schema(stream: BinaryIO) -> parquet.FileMetaData:
    """Return the file's metadata as written by anyone but Arrow, whose own schema is what asks for dictionaries.

    To make one, Arrow keeps all images of a row group: 1.6 GB for a file of 0.3 GB. They are binary all the same.
    """
    stream.seek(-8, os.SEEK_END)
    length = int.from_bytes(stream.read(4), "little")
    stream.seek(-8 - length, os.SEEK_END)
    footer = stream.read().replace(b"ARROW:schema", b"arrow-schema")
    return parquet.read_metadata(pa.BufferReader(b"PAR1" + footer))


def _batches(shard: Shard, file: parquet.ParquetFile, group: int, source: ParquetInput) -> Iterator[pa.RecordBatch]:
    columns = _columns(file.schema_arrow, source)
    with unreadable(shard.uri, f"damaged in row group {group} of {file.num_row_groups}"):
        # One thread: the shards are what runs in parallel, and a Python file is read by one thread at a time.
        yield from file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False)


def _columns(schema: pa.Schema, source: ParquetInput) -> list[str]:
    image = schema.field(source.image_column)
    columns = [source.image_column]
    if types.is_struct(image.type):  # fields of Hugging Face's struct one by one, so that others are not read
        columns = [f"{source.image_column}.{name}" for name in ("bytes", "path") if _has(image.type, name)]
    return columns + ([source.label_column] if source.label_column else [])


def _misfit(schema: pa.Schema, source: ParquetInput) -> str | None:
    """Describe what is wrong with the columns that `source` names; None if they can be used."""
    for setting, column in (("image_column", source.image_column), ("label_column", source.label_column)):
        if column is not None and schema.get_field_index(column) < 0:
            return f"no column {column!r} (columns: {', '.join(schema.names)}); set input.{setting}"
    image = schema.field(source.image_column).type
    if types.is_struct(image) and _has(image, "bytes"):
        image = image.field("bytes").type
    if not _is_binary(image):
        advice = "; paths and URLs are not followed" if _is_string(image) else ""
        return f"column {source.image_column!r} is {image}, not encoded images (binary, or struct<bytes, path>){advice}"
    label = schema.field(source.label_column).type if source.label_column else pa.string()
    label = label.value_type if types.is_dictionary(label) else label
    if not (types.is_integer(label) or _is_string(label)):
        return f"column {source.label_column!r} is {label}, not labels (strings or integers)"
    return None


def _has(struct: pa.StructType, name: str) -> bool:
    return bool(struct.get_field_index(name) >= 0)


def _is_binary(kind: pa.DataType) -> bool:
    matches = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    return any(match(kind) for match in matches)


def _is_string(kind: pa.DataType) -> bool:
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _refusal(data: pa.Buffer | None, path: str | None) -> Fault | None:
    """Tell why a value is not accepted as an image; None if it is. A value that is too large is never copied."""
    if data is None and path:
        return _PATH_ALONE
    if data is None or not data.size:
        return EMPTY
    return too_large(data.size) if data.size > MAX_ENCODED else None


def _values(batch: pa.RecordBatch, source: ParquetInput) -> Iterator[tuple[pa.Buffer | None, str | None, str | None]]:
    """Return the image bytes, path and label of each row."""
    nothing: list[str | None] = [None] * batch.num_rows
    images = batch.column(source.image_column)
    paths = nothing
    if types.is_struct(images.type):
        names = images.type.names
        fields = dict(zip(names, images.flatten(), strict=True))  # a null struct has null fields
        images = fields["bytes"]
        paths = _texts(fields["path"]) if "path" in fields else nothing
    labels = _texts(batch.column(source.label_column)) if source.label_column else nothing
    return zip((image.as_buffer() for image in images), paths, labels, strict=True)


def _texts(values: pa.Array) -> list[str | None]:
    r"""Convert strings or integers to text; bytes that are not UTF-8, which Parquet allows, become `\xNN`."""
    if types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if not _is_string(values.type):
        return [None if value is None else str(value) for value in values.to_pylist()]
    encoded = values.cast(pa.binary()).to_pylist()
    return [None if value is None else value.decode(errors="backslashreplace") for value in encoded]


@contextmanager
def unreadable(uri: str, what: str) -> Iterator[None]:
    """Turn Arrow's errors about the content into ShardUnreadable; the store's own errors pass unchanged.

    Raises MachineFault for what this machine lacks.
    """
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        if fault := machine_fault(error):
            raise fault from error
        if not isinstance(error, pa.ArrowException | OSError | ValueError):  # ValueError: names that are not UTF-8
            raise
        raise ShardUnreadable(f"{uri}: {what}: {reason(error)}") from error
