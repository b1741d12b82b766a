"""CSV as the page, spreadsheets and other tools write it: any of three separators, line ends and encodings."""

import csv
import io
import math
from collections.abc import Iterator, Mapping
from typing import Any

from gradosr.audit.export import CHOICE, NEW_CLASS, cell
from gradosr.errors import InputError, first_line
from gradosr.labels.exports import least
from gradosr.labels.said import Said, parsed_time

SEPARATORS = ",;\t"
_UTF16 = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_LONGEST_CELL = 1 << 24


def read(file: str, body: bytes) -> Iterator[Said]:
    """Yield the rows of a CSV file with the columns `key` and `label`, and as far as they are there who, when, id.

    Label Studio's CSV and TSV have its controls in place of `label`.
    """
    text = _decoded(file, body)
    number, rest, separator = _header(file, text)
    csv.field_size_limit(_LONGEST_CELL)
    rows = csv.DictReader(io.StringIO(rest, newline=""), delimiter=separator)
    rows.fieldnames = [name.strip().casefold() for name in rows.fieldnames or ()]
    _check_columns(file, rows.fieldnames)
    try:
        for row in rows:
            where = f"{file}, line {number + rows.line_num}"
            cells = {name: value for name, value in row.items() if isinstance(name, str) and isinstance(value, str)}
            if any(value.strip() for value in cells.values()):
                key, image_id = _unguarded(cells.get("key", "")), cells.get("id", "").strip()
                yield (_said if "label" in rows.fieldnames else least)(where, key, image_id, cells)
    except csv.Error as error:
        raise InputError(f"{file}, line {number + rows.line_num}: not CSV: {first_line(error)}") from error


def probability(where: str, value: Any) -> float | None:
    """Return a probability from a cell, None if it is empty. Raises InputError for anything else."""
    if value in (None, ""):
        return None
    try:
        number = float(str(value).replace(",", "."))
    except ValueError:
        number = math.nan
    if not 0 < number <= 1:
        raise InputError(f"{where}: drawn is {value!r}, not a probability over 0 and up to 1")
    return number


def _decoded(file: str, body: bytes) -> str:
    encoding = _UTF16.get(body[:2], "utf-8-sig")
    if encoding == "utf-8-sig" and b"\0" in body[:4]:
        encoding = "utf-16-le" if body[1:2] == b"\0" else "utf-16-be"
    try:
        return body.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file}: not UTF-8 (byte {error.start}): save it as `CSV UTF-8`, or as `Unicode text`"
        ) from error


def _header(file: str, text: str) -> tuple[int, str, str]:
    """Return the number of lines before the header, the text from there on, and its separator."""
    lines = 0
    if text[:4].casefold() == "sep=":  # Excel's own line
        _, _, text = text.partition("\n")
        lines = 1
    first = next(iter(text.splitlines()), "")
    if not first.strip():
        raise InputError(f"{file}: is empty")
    return lines, text, max(SEPARATORS, key=first.count)


def _check_columns(file: str, names: list[str]) -> None:
    wanted = ("key", CHOICE if NEW_CLASS in names else "label")
    if missing := [name for name in wanted if name not in names]:
        raise InputError(
            f"{file}: its first line has no column {' and no column '.join(missing)} "
            f"({', '.join(names)[:200]}); a file of labels has `key` and `label`"
        )
    if twice := [name for name in wanted if names.count(name) > 1]:
        raise InputError(f"{file}: has two columns {twice[0]}")


def _said(where: str, key: str, image_id: str, row: Mapping[str, str]) -> Said:
    source = "page" if row.get("source") == "page" else "csv"
    return Said(
        where,
        key,
        _unguarded(row.get("label", "")),
        _unguarded(row.get("who", "")).strip() or None,
        parsed_time(where, row.get("when", "")),
        source,
        image_id,
        probability(where, row.get("drawn", "").strip()),
    )


def _unguarded(text: str) -> str:
    """Take off the apostrophe with which sheets keep a text from being a formula."""
    return text[1:] if text[:1] == "'" and cell(text[1:]) == text else text
