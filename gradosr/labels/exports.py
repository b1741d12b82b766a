"""Labels in JSON: Label Studio's exports (JSON and JSON-MIN) and FiftyOne's.

Label Studio's are lists of tasks. FiftyOne's are objects: `samples` of a FiftyOneDataset (samples.json) or of
`Dataset.write_json`, or `labels` by file name of a FiftyOneImageClassificationDataset (labels.json).
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from gradosr.audit.export import CHOICE, NEW_CLASS, NONE_OF_THESE
from gradosr.errors import InputError
from gradosr.labels.said import Said, parsed_time

TRUTH = "ground_truth"
"""The field of a FiftyOne dataset that the label is looked for in first."""
HANDED_OUT = "handed out"
OWN_TAGS = frozenset({"flagged", "over_threshold", HANDED_OUT})
"""Tags that gradosr itself writes."""


def read(file: str, document: Any) -> Iterator[Said]:
    """Yield the rows of an export. Raises InputError if it is not one."""
    if isinstance(document, list):
        for number, task in enumerate(document, start=1):
            yield from _task(f"{file}, task {number}", task)
    elif isinstance(document, dict) and isinstance(document.get("samples"), list):
        yield from _samples(file, document["samples"])
    elif isinstance(document, dict) and isinstance(document.get("labels"), dict):
        yield from _by_file(file, document["labels"], document.get("classes"))
    else:
        raise InputError(f"{file}: neither Label Studio's export (JSON, JSON-MIN) nor FiftyOne's")


def _task(where: str, task: Any) -> Iterator[Said]:
    if not isinstance(task, dict):
        raise InputError(f"{where}: not a task of Label Studio")
    data = task.get("data", task)
    key, image_id = (data.get(name) for name in ("key", "id")) if isinstance(data, dict) else (None, None)
    if not isinstance(key, str):
        raise InputError(f"{where}: has no `key`; only tasks that gradosr wrote, or with its key, can be imported")
    image_id = image_id if isinstance(image_id, str) else ""
    if "data" not in task:
        yield least(where, key, image_id, task)
        return
    annotations = task.get("annotations", task.get("completions"))
    if not isinstance(annotations, list) or not all(isinstance(one, dict) for one in annotations):
        raise InputError(f"{where}: has no list of annotations; export as JSON or JSON-MIN")
    for one in annotations:
        label = "" if one.get("was_cancelled") else _chosen(where, one.get("result") or [])
        yield Said(where, key, label, _person(one.get("completed_by")), _time(where, one), "label_studio", image_id)
    if not annotations:
        yield Said(where, key, "", None, None, "label_studio", image_id)


def least(where: str, key: str, image_id: str, task: Mapping[str, Any]) -> Said:
    """Return the row of JSON-MIN, CSV and TSV, whose tasks have controls as fields."""
    said = {name: [*_texts(task.get(name))] for name in (CHOICE, NEW_CLASS, "label")}
    label = _one(where, said[CHOICE] or said["label"], said[NEW_CLASS])
    return Said(where, key, label, _person(task.get("annotator")), _time(where, task), "label_studio", image_id)


def _chosen(where: str, results: Any) -> str:
    """Return the label of one annotation, blank if it has none."""
    choices: list[str] = []
    named: list[str] = []
    for result in results if isinstance(results, list) else []:
        value = result.get("value") if isinstance(result, dict) else None
        if isinstance(value, dict):
            choices += _texts(value.get("choices"))
            named += _texts(value.get("text")) if result.get("type") == "textarea" else []
    return _one(where, choices, named)


def _one(where: str, choices: Sequence[str], named: Sequence[str]) -> str:
    """Return the one label of choices and typed names; a name stands for `none of these` and beside nothing else."""
    if len(choices) > 1 or len(named) > 1:
        raise InputError(f"{where}: has more than one label: {', '.join([*choices, *named])[:200]}")
    if not named:
        return choices[0] if choices else ""
    if choices and choices[0] not in (NONE_OF_THESE, "unknown", named[0]):
        raise InputError(f"{where}: the class {choices[0]!r} is chosen, and {named[0]!r} is named as a new one")
    return named[0]


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        value = value.get("choices", value.get("text"))
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str) and text.strip()]


def _person(who: Any) -> str | None:
    if isinstance(who, dict):
        who = who.get("email") or who.get("id")
    return None if who in (None, "") else f"annotator {who}" if str(who).isdigit() else str(who)


def _time(where: str, facts: Mapping[str, Any]) -> Any:
    text = facts.get("updated_at") or facts.get("created_at") or ""
    return parsed_time(where, text) if isinstance(text, str) else None


def _samples(file: str, samples: Sequence[Any]) -> Iterator[Said]:
    if not all(isinstance(sample, dict) for sample in samples):
        raise InputError(f"{file}: its samples are not those of FiftyOne")
    field = _field(file, samples)
    for number, sample in enumerate(samples, start=1):
        where = f"{file}, sample {number}"
        key, image_id = sample.get("key"), sample.get("image_id")
        stem = PurePosixPath(str(sample.get("filepath", ""))).stem
        yield Said(
            where,
            key if isinstance(key, str) else "",
            _sample_label(where, sample, field),
            None,
            None,
            "fiftyone",
            image_id if isinstance(image_id, str) else stem,
        )


def _field(file: str, samples: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the field of classifications that holds the labels; None if labels can only be tags."""
    fields = {
        name for sample in samples for name, value in sample.items()
        if isinstance(value, dict) and value.get("_cls") == "Classification" and name != "predicted"
    }  # fmt: skip
    if TRUTH in fields or not fields:
        return TRUTH if fields else None
    if len(fields) > 1:
        raise InputError(f"{file}: has the fields {', '.join(sorted(fields))}; put the labels into `{TRUTH}`")
    return fields.pop()


def _sample_label(where: str, sample: Mapping[str, Any], field: str | None) -> str:
    value = sample.get(field) if field else None
    label = value.get("label") if isinstance(value, dict) else None
    if isinstance(label, str):
        return label
    tags = sample.get("tags")
    return _one(where, [tag for tag in _texts(tags if isinstance(tags, list) else None) if tag not in OWN_TAGS], [])


def _by_file(file: str, labels: Mapping[str, Any], classes: Any) -> Iterator[Said]:
    for name, value in labels.items():
        label = value.get("label") if isinstance(value, dict) else value
        if isinstance(label, int) and isinstance(classes, list) and 0 <= label < len(classes):
            label = classes[label]
        if label is not None and not isinstance(label, str):
            raise InputError(f"{file}: {name} has no class: {label!r}")
        yield Said(f"{file}, {name}", "", label or "", None, None, "fiftyone", PurePosixPath(name).stem)
