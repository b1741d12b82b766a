"""Export of the flagged images for labelling: Label Studio, FiftyOne, a spreadsheet, and the pictures as files.

flagged.csv        every flagged row, over_threshold.csv where none is flagged; it opens in any spreadsheet, and no cell
                   is a formula
images/ID.jpg      the pictures; ID is a hash of the key, so no key can choose where a file is written
labelstudio.json   one task per row with a picture; tasks contain the picture, so Label Studio needs no storage
labelstudio.xml    the labelling configuration for them: the known classes, "none of these", and the name of a new class
fiftyone.json      the same rows as samples: fiftyone.Dataset.from_json("OUT/fiftyone.json", rel_dir="OUT")
"""

import base64
import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from gradosr.archive.shards import as_text
from gradosr.audit.pictures import Pictures
from gradosr.audit.text import shortened

COLUMNS = ("id", "key", "shard", "row", "label", "predicted_class", "confidence", "unknown_score", "p_value", "group")
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

    def rows() -> Iterator[dict[str, Any]]:
        with pq.ParquetFile(listed, pre_buffer=False) as file:
            for batch in file.iter_batches(_BATCH, columns=list(COLUMNS), use_threads=False):
                yield from batch.to_pylist()

    return islice(rows(), limit)


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
    with listed.with_suffix(".csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
        table.writerow(COLUMNS)
        for row in flagged_rows(listed):
            rows += 1
            table.writerow([cell(row[name]) for name in COLUMNS])
            picture = pictures.by_id.get(row["id"])
            if picture and picture.larger:
                name = picture_file(row)
                (folder / name).write_bytes(picture.larger)
                stale.discard(name)
                tasks.append(task(row, picture.larger, name))
                samples.append(sample(row, name, listed.stem))
    for name in stale:  # left by an earlier audit in the same folder
        (folder / name).unlink()
    (out / "labelstudio.xml").write_text(labelling(classes), encoding="utf-8")
    dump(out / "labelstudio.json", tasks)
    dump(out / "fiftyone.json", dataset(f"gradosr-{listed.stem}", samples))
    return {"rows": rows, "pictured": len(tasks)}


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
