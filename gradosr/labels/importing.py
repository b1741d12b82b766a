"""Import of a file of labels into a run: all of it, or nothing."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from gradosr.audit.rows import RunTable, find, id_of
from gradosr.audit.text import shortened
from gradosr.errors import InputError
from gradosr.labels.folder import rows_of, write_labels
from gradosr.labels.names import Names
from gradosr.labels.reading import read
from gradosr.labels.records import handed_out, read_rounds
from gradosr.labels.said import Said
from gradosr.store import Store

_NAMED = 3


def import_labels(store: Store, run_uri: str, file: str, who: str) -> dict[str, Any]:
    """Add the labels of a file to a run, and return the facts of it; `who` said them where the file does not tell.

    Raises InputError, and imports nothing, if the file cannot be read, names an image that the run does not have, gives
    a class an impossible name, or contradicts itself.
    """
    table = RunTable(store, run_uri)
    said, now = read(store, file), datetime.now(timezone.utc)
    names = Names(table.about["classes"])
    given = [(one, label) for one in said if (label := names.label(one.label, one.where))]
    if not given:
        raise InputError(f"{file}: has no label: {len(said):,} rows, all of them blank")
    shards, by_id = _shards(store, table, [one for one, _ in given])
    keys = [_key(one, shards, by_id) for one, _ in given]
    _check_keys(file, run_uri, keys, shards)
    rows = [
        {"key": key, "shard": shards[key], "label": label, "who": one.who or who, "when": one.when or now,
         "source": one.source, "drawn": one.drawn}
        for key, (one, label) in zip(keys, given, strict=True)
    ]  # fmt: skip
    _check_contradictions([one for one, _ in given], rows)
    added = write_labels(store, run_uri, rows_of(rows))
    blank = len(said) - len(rows)
    notes = [f"{file}: {len(rows):,} labels imported, {blank:,} rows without a label passed over"]
    if added is None:
        notes = [f"{file}: the same {len(rows):,} labels were imported before; nothing is added"]
    return {"imported": len(rows) if added else 0, "blank": blank, "file": added, "notes": notes}


def _shards(store: Store, table: RunTable, said: Sequence[Said]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the shard of each key that the run has, and the keys of images by their ids, as far as these are needed.

    Ids stand in for keys that suffered on the way, such as one that is too long for a page; to find one that was not
    handed out takes another pass over the table.
    """
    by_id = {id_of(image.key): image.key for image in handed_out(read_rounds(store, table.folder.uri))}
    keys = {one.key for one in said if one.key} | {by_id[one.id] for one in said if one.id in by_id}
    shards = find(table, keys)
    lost = {one.id for one in said if one.id and one.key not in shards and one.id not in by_id}
    found = find(table, lost, id_of)
    return shards | found, by_id | {id_of(key): key for key in found}


def _key(one: Said, shards: Mapping[str, str], by_id: Mapping[str, str]) -> str:
    return one.key if one.key in shards else by_id.get(one.id, one.key)


def _check_keys(file: str, run_uri: str, keys: Iterable[str], shards: Mapping[str, str]) -> None:
    keys = list(dict.fromkeys(keys))
    missing = [key for key in keys if key not in shards]
    if missing:
        shown = ", ".join(shortened(key) or "(no key)" for key in missing[:_NAMED])
        whose = "take them out of the file" if len(missing) < len(keys) else "are they of another run?"
        raise InputError(
            f"{file}: {len(missing):,} of {len(keys):,} images are not in {run_uri} ({shown}); "
            f"nothing was imported; {whose}"
        )


def _check_contradictions(said: Sequence[Said], rows: Sequence[Mapping[str, object]]) -> None:
    """Raise InputError if one person gives an image two labels, and no time tells which is the later one."""
    before: dict[tuple[object, ...], tuple[Said, object]] = {}
    for one, row in zip(said, rows, strict=True):
        first, label = before.setdefault((row["key"], row["who"], row["when"]), (one, row["label"]))
        if label != row["label"]:
            raise InputError(
                f"{one.where}: {shortened(str(row['key']))} is {row['label']} here and {label} in {first.where}; "
                "nothing was imported; leave one of them"
            )
