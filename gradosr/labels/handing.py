"""The folder of a round: the same images as a page, a sheet, and tasks for Label Studio and FiftyOne.

label.html          one page that needs neither network nor server
sheet.csv           for a spreadsheet: fill in the column `label`
label_studio.json   tasks for Label Studio, which carry their pictures; label_studio.xml is their configuration
fiftyone/           fiftyone.Dataset.from_json("fiftyone/fiftyone.json", rel_dir="fiftyone"); fill in ground_truth
"""

import csv
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from gradosr.archive.readers import keys_of
from gradosr.archive.shards import locate
from gradosr.audit import export, pictures
from gradosr.audit.flagged import check_folder, written
from gradosr.audit.pictures import Pictures
from gradosr.audit.rows import RunTable
from gradosr.config import Input
from gradosr.errors import StoreError
from gradosr.labels import page
from gradosr.labels.clusters import clusters, in_order
from gradosr.labels.drawing import draw
from gradosr.labels.exports import HANDED_OUT, TRUTH
from gradosr.labels.merging import read_labels
from gradosr.labels.records import Round, claim, read_rounds
from gradosr.store import Store
from gradosr.store.threads import threads

SHEET = ("id", "key", "shard", "predicted_class", "unknown_score", "p_value", "uri", "label")
_DATA = ("id", "key", "shard", "row", "predicted_class", "unknown_score", "p_value", "cluster")
_STAGING = ".writing-"
_INPUT: TypeAdapter[Input] = TypeAdapter(Input)

Rows = Sequence[Mapping[str, Any]]


def hand_out(store: Store, run_uri: str, number: int, seed: int, out: Path) -> dict[str, Any]:
    """Choose the images of the next round, write them into the folder `out`, and return the facts of it.

    The files appear right after the record of their images; if another person's round gets in between, the images are
    chosen again. A command that was killed is repeated without a loss. Raises InputError if no image is left, and
    StoreError if the folder cannot be written or holds something: it may be labels.
    """
    check_folder(out)
    table = RunTable(store, run_uri)
    notes = [] if table.listing.finished else ["the run is not finished: the images are of the parts there are"]
    if (made := _left_behind(out, read_rounds(store, run_uri))) is None:
        made, shown = _claimed(store, table, number, seed, out)
        notes += [f"{number} pictures missing: {pictures.REASONS[kind]}" for kind, number in shown.missing.items()]
    notes.append(f"{len(made.images)} images to label: open {out / page.NAME}")
    return {"round": made.number, "images": len(made.images), "notes": notes}


def _left_behind(out: Path, rounds: Sequence[Round]) -> Round | None:
    """Publish what a killed command left in `out` if its images are on record; return its round, None without one."""
    with written(out):
        for folder in out.glob(f"{_STAGING}*"):
            for made in rounds:
                if folder.name == _STAGING + made.token:
                    _publish(folder)
                    return made
            shutil.rmtree(folder)
        if any(out.iterdir()):
            raise StoreError(f"{out}: is not empty; choose a new folder, as this one may hold labels")
    return None


def _claimed(store: Store, table: RunTable, number: int, seed: int, out: Path) -> tuple[Round, Pictures]:
    """Choose images, and write them until nobody else has recorded a round in between."""
    uri, source = table.folder.uri, _INPUT.validate_python(table.fingerprint["input"])
    while True:
        rounds, labelled = read_rounds(store, uri), set(read_labels(store, uri)["key"].to_pylist())
        made, rows = draw(table, rounds, labelled, number, seed)
        rows = in_order(rows, clusters(store, table, rows), (seed, made.number))
        shown = pictures.fetch(store, source, rows, table.parts)
        folder = out / (_STAGING + made.token)
        with written(out):
            _write(store, table, rows, shown, folder, made.token)
            if claim(store, uri, made):
                _publish(folder)
                return made, shown
            shutil.rmtree(folder)


def _write(store: Store, table: RunTable, rows: Rows, shown: Pictures, folder: Path, token: str) -> None:
    """Write all files of a round into a new folder."""
    (folder / "fiftyone" / "images").mkdir(parents=True)
    _write_sheet(store, table, rows, folder / "sheet.csv")
    _write_tasks(table, rows, shown, folder)
    (folder / page.NAME).write_text(page.render(table, rows, shown, token), encoding="utf-8")


def _publish(folder: Path) -> None:
    """Move the files to where people look; the folder itself may be a mount point, which cannot be renamed."""
    for path in folder.iterdir():
        path.replace(folder.parent / path.name)
    folder.rmdir()


def _write_sheet(store: Store, table: RunTable, rows: Rows, path: Path) -> None:
    source = _INPUT.validate_python(table.fingerprint["input"])
    names = list(dict.fromkeys(row["key"] if keys_of(source.kind) == "path" else row["shard"] for row in rows))

    def uri(name: str) -> str:
        try:
            return locate(source, name, store).uri
        except StoreError:  # its picture is missing as well, and the reason is told there
            return ""

    with threads(8, "uris") as pool:
        uris = dict(zip(names, pool.map(uri, names), strict=True))
    with path.open("w", encoding="utf-8-sig", newline="") as file:  # the mark, or Excel takes it for another encoding
        table_file = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
        table_file.writerow(SHEET)
        for row in rows:
            facts = {**row, "uri": uris.get(row["key"]) or uris.get(row["shard"]), "label": None}
            table_file.writerow([export.cell(facts[name]) for name in SHEET])


def _write_tasks(table: RunTable, rows: Rows, shown: Pictures, folder: Path) -> None:
    tasks, samples = [], []
    for row in rows:
        if larger := shown.by_id[row["id"]].larger:
            name = export.picture_file(row)
            (folder / "fiftyone" / "images" / name).write_bytes(larger)
            tasks.append(export.task(row, larger, name, _DATA))
            unlabelled = {**row, "label": None, "group": row["cluster"]}
            samples.append({**export.sample(unlabelled, name, HANDED_OUT), TRUTH: None})
    export.dump(folder / "label_studio.json", tasks)
    (folder / "label_studio.xml").write_text(export.labelling(table.about["classes"]), encoding="utf-8")
    dataset = export.dataset("gradosr-to-label", samples, ("predicted", TRUTH))
    export.dump(folder / "fiftyone" / "fiftyone.json", dataset)
