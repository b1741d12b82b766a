"""Export of the flagged images for labelling: Label Studio, FiftyOne, a spreadsheet, and the pictures as files.

flagged.csv        every flagged row, over_threshold.csv where none is flagged; it opens in any spreadsheet, and no cell
                   is a formula
images/ID.jpg      the pictures; ID is a hash of the key, so no key can choose where a file is written
labelstudio.json   one task per row with a picture; tasks contain the picture, so Label Studio needs no storage
labelstudio.xml    the labelling configuration for them: the known classes, "none of these", and the name of a new class
fiftyone.json      the same rows as samples: fiftyone.Dataset.from_json("OUT/fiftyone.json", rel_dir="OUT")
"""

import base64
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow.csv import CSVWriter, WriteOptions

from gradosr.archive.shards import as_text
from gradosr.audit.flagged import SCHEMA
from gradosr.audit.pictures import Pictures
from gradosr.audit.text import shortened

COLUMNS = tuple(SCHEMA.names)
"""Columns of flagged.parquet, over_threshold.parquet, and their CSV."""
CHOICE, NEW_CLASS = "class", "new_class"
"""The two controls of Label Studio's labelling configuration."""
NONE_OF_THESE, ONE_OF_THESE = "none of these", "one of the known classes"
"""Choices that name no class."""
CHOICE_LETTERS = 200
"""Letters of a class name in a choice."""
LABELLING = """<View>
  <Image name="image" value="$image"/>
  <Text name="about" value="$about"/>
  <Choices name="{choice}" toName="image" choice="single">
{choices}
  </Choices>
  <TextArea name="{new_class}" toName="image" rows="1" maxSubmissions="1" editable="true"
            placeholder="none of these: the name of its class, if it has one"/>
</View>"""
"""Template of Label Studio's labelling configuration; the classes are filled in."""

_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # including full-width forms
_PLAIN = r"^[0-9A-Za-z][ -~]*$"
"""Pattern of texts that are cells as they are."""
_BATCH = 10_000
_FIELDS = {
    "image_id": "String",
    "key": "String",
    "shard": "String",
    "row": "Int",
    "label": "String",
    "unknown_score": "Float",
    "p_value": "Float",
    "group": "String",
}  # fmt: skip
_CLASSIFICATION = "fiftyone.core.fields.EmbeddedDocumentField(fiftyone.core.labels.Classification)"


def flagged_rows(listed: Path, limit: int | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of flagged.parquet or over_threshold.parquet in bounded memory, at most `limit` of them."""
    return islice(chain.from_iterable(batch.to_pylist() for batch in _batches(listed)), limit)


def _batches(listed: Path) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(listed, pre_buffer=False) as file:
        yield from file.iter_batches(_BATCH, columns=list(COLUMNS), use_threads=False)


def write(listed: Path, pictures: Pictures, classes: Iterable[str] = ()) -> dict[str, int]:
    """Write all files of the export beside the list `listed`; return the numbers of rows and pictures.

    `classes` are the known classes, offered as choices for labelling.
    """
    rows, out = 0, listed.parent
    tasks: list[dict[str, Any]] = []
    samples: list[dict[str, Any]] = []
    folder = out / "images"
    folder.mkdir(exist_ok=True)
    stale = {path.name for path in folder.glob("*.jpg")}
    pictured = {id_: picture.larger for id_, picture in pictures.by_id.items() if picture.larger}
    quoted = WriteOptions(quoting_style="all_valid")
    with CSVWriter(listed.with_suffix(".csv"), SCHEMA, write_options=quoted) as table:
        for batch in _batches(listed):
            rows += len(batch)
            table.write_batch(pa.record_batch([_cells(column) for column in batch.columns], SCHEMA))
            for row in batch.filter(pc.is_in(batch["id"], pa.array(pictured, pa.string()))).to_pylist():
                jpeg, name = pictured[row["id"]], picture_file(row)
                (folder / name).write_bytes(jpeg)
                stale.discard(name)
                tasks.append(task(row, jpeg, name))
                samples.append(sample(row, name, listed.stem))
    for name in stale:  # left by an earlier audit in the same folder
        (folder / name).unlink()
    (out / "labelstudio.xml").write_text(labelling(classes), encoding="utf-8")
    dump(out / "labelstudio.json", tasks)
    dump(out / "fiftyone.json", dataset(f"gradosr-{listed.stem}", samples))
    return {"rows": rows, "pictured": len(tasks)}


def _cells(column: pa.Array) -> pa.Array:
    """Return a column with its texts as cells; nearly always it is the column itself."""
    if not pa.types.is_string(column.type) or pc.all(pc.match_substring_regex(column, _PLAIN)).as_py():
        return column
    return pa.array([cell(value) for value in column.to_pylist()], pa.string())


def cell(value: Any) -> str:
    """Return a value as a cell that no spreadsheet takes for a formula: text that looks like one gets a leading '."""
    if value is None:
        return ""
    if not isinstance(value, str):
        return str(value)
    text = as_text(value).replace("\0", "\\x00")
    return f"'{text}" if text.startswith(("\t", "\r", "\n")) or text.lstrip().startswith(_FORMULA) else text


def labelling(classes: Iterable[str]) -> str:
    """Return Label Studio's labelling configuration for the known classes, and for images of none of them."""
    from xml.sax.saxutils import quoteattr

    names = [NONE_OF_THESE, ONE_OF_THESE, *(shortened(name, CHOICE_LETTERS) for name in classes)]
    choices = "\n".join(f"    <Choice value={quoteattr(name)}/>" for name in names)
    return LABELLING.format(choice=CHOICE, new_class=NEW_CLASS, choices=choices)


def task(row: Mapping[str, Any], jpeg: bytes, name: str, columns: Iterable[str] = COLUMNS) -> dict[str, Any]:
    """Return Label Studio's task for a row, its picture and the name of its file, with `columns` of the row as data."""
    about = f"{shortened(row['key'], 200)} - predicted {shortened(row['predicted_class'] or 'nothing', 80)}"
    data = {
        "image": f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}",
        "about": about,
        "image_file": f"images/{name}",
        **{column: _plain(row[column]) for column in columns},
    }
    return {"data": data}


def sample(row: Mapping[str, Any], name: str, tag: str = "flagged") -> dict[str, Any]:
    """Return FiftyOne's sample for a row and its picture's file."""
    predicted = {
        "_cls": "Classification",
        "label": _plain(row["predicted_class"]),
        "confidence": _plain(row.get("confidence")),
    }
    values = {field: _plain(row.get("id" if field == "image_id" else field)) for field in _FIELDS}
    return {
        "filepath": f"images/{name}",
        "tags": [tag],
        "metadata": None,
        "_media_type": "image",
        **values,
        "predicted": predicted if row["predicted_class"] is not None else None,
    }


def dataset(name: str, samples: list[dict[str, Any]], labels: Sequence[str] = ("predicted",)) -> dict[str, Any]:
    """Return FiftyOne's dataset of samples, with fields for classifications."""
    fields = {field: f"fiftyone.core.fields.{kind}Field" for field, kind in _FIELDS.items()}
    return {
        "name": name,
        "media_type": "image",
        "sample_fields": {**fields, **dict.fromkeys(labels, _CLASSIFICATION)},
        "info": {},
        "samples": samples,
    }


def _plain(value: Any) -> Any:
    """Return a value that JSON and databases accept: without lone surrogates, and with None for NaN and infinity."""
    if isinstance(value, str):
        return as_text(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def picture_file(row: Mapping[str, Any]) -> str:
    """Return the name of a row's picture. Raises ValueError if its id is not one: the table could contain anything."""
    name = row["id"]
    if not (name.isascii() and name.isalnum()):
        raise ValueError(f"not an id: {name!r}")
    return f"{name}.jpg"


def dump(path: Path, document: Any) -> None:
    """Write a document as JSON that any parser reads."""
    path.write_text(json.dumps(document, allow_nan=False), encoding="utf-8")
