"""Files of labels as spreadsheets, the page, Label Studio and FiftyOne write them, and what is wrong with some."""

import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pytest
from labelled_run import SHARD, Scored
from pyarrow import parquet

from gradosr.audit.export import cell
from gradosr.audit.rows import id_of
from gradosr.labels import read_labels, verdicts
from gradosr.store import Store

CLASSES = ("cat", "dog", "ship")


def said(run: Scored) -> dict[str, str]:
    labels = read_labels(Store(), run.uri)
    return dict(zip(labels["key"].to_pylist(), labels["label"].to_pylist(), strict=True))


def sheet(run: Scored, labels: list[str], separator: str = ",", end: str = "\r\n") -> str:
    body = io.StringIO()
    writer = csv.writer(body, delimiter=separator, lineterminator=end)
    writer.writerow(["Key", "shard", "unknown_score", "label"])
    for key, label in zip(run.keys, labels, strict=False):
        writer.writerow([cell(key), SHARD, "1,5", label])
    return body.getvalue()


@pytest.mark.parametrize(
    ("separator", "end", "before", "encoding"),
    [
        (",", "\n", "", "utf-8"),
        (",", "\r\n", "", "utf-8-sig"),
        (";", "\r\n", "", "utf-8-sig"),
        (";", "\r\n", "sep=;\r\n", "utf-8"),
        ("\t", "\r\n", "", "utf-16"),  # Excel's "Unicode text"
        ("\t", "\r\n", "", "utf-16-le"),
        (",", "\r", "", "utf-8"),
    ],
)
def test_a_sheet_as_any_spreadsheet_saves_it(scored, gradosr, tmp_path: Path, separator, end, before, encoding):
    labels = ["known", "", "unknown", " okapi ", "CAT", "Unknown", "  "]
    (tmp_path / "sheet.csv").write_bytes((before + sheet(scored, labels, separator, end)).encode(encoding))
    code, _, err = gradosr("label", scored.uri, "--import", str(tmp_path / "sheet.csv"), "--who", "anna")
    assert (code, "5 labels imported, 2 rows without a label passed over" in err) == (0, True)
    keys = [scored.keys[place] for place in (0, 2, 3, 4, 5)]
    assert said(scored) == dict(zip(keys, ["known", "unknown", "okapi", "cat", "unknown"], strict=True))
    rows = read_labels(Store(), scored.uri).to_pylist()
    assert {(row["who"], row["source"], row["shard"]) for row in rows} == {("anna", "csv", SHARD)}


def test_every_hostile_key_comes_back(scored, gradosr, tmp_path: Path):
    (tmp_path / "sheet.csv").write_text(sheet(scored, ["unknown"] * 80))
    assert gradosr("label", scored.uri, "--import", str(tmp_path / "sheet.csv"))[0] == 0
    assert said(scored) == dict.fromkeys(scored.keys, "unknown")


def test_an_id_stands_in_for_a_key_that_suffered(scored, gradosr, tmp_path: Path):
    rows = [f'"{key[:5]}…","{id_of(key)}","okapi"' for key in scored.keys[:3]]
    (tmp_path / "labels.csv").write_text("\n".join(["key,id,label", *rows]))
    assert gradosr("label", scored.uri, "--import", str(tmp_path / "labels.csv"))[0] == 0
    assert said(scored) == dict.fromkeys(scored.keys[:3], "okapi")


def test_the_same_file_again_adds_nothing(scored, gradosr, tmp_path: Path):
    (tmp_path / "sheet.csv").write_text(sheet(scored, ["cat", "okapi"]))
    for told in ("2 labels imported", "the same 2 labels were imported before; nothing is added"):
        code, _, err = gradosr("label", scored.uri, "--import", str(tmp_path / "sheet.csv"))
        assert (code, told in err) == (0, True)
    assert len(read_labels(Store(), scored.uri)) == 2


def test_tables_of_other_tools_tell_who_when_and_the_probability(scored, gradosr, tmp_path: Path):
    table = pa.table({"key": scored.keys[:3], "label": ["cat", None, "okapi"], "who": ["anna", None, "ben"],
                      "when": pa.array([10**15] * 3, pa.timestamp("us")), "drawn": [0.5, 0.5, 0.25]})  # fmt: skip
    parquet.write_table(table, tmp_path / "labels.parquet")
    assert gradosr("label", scored.uri, "--import", str(tmp_path / "labels.parquet"))[0] == 0
    rows = read_labels(Store(), scored.uri).to_pylist()
    assert [(row["label"], row["who"], row["source"], row["drawn"]) for row in rows] == [
        ("cat", "anna", "table", 0.5), ("okapi", "ben", "table", 0.25),
    ]  # fmt: skip
    assert str(rows[0]["when"]) == "2001-09-09 01:46:40+00:00"


def annotation(who, *result, when="2026-11-01T10:00:00.5Z", **more):
    return {"completed_by": who, "created_at": when, "result": list(result), **more}


def choice(name):
    return {"from_name": "class", "to_name": "image", "type": "choices", "value": {"choices": [name]}}


def typed(name):
    return {"from_name": "new_class", "to_name": "image", "type": "textarea", "value": {"text": [name]}}


def test_label_studio_with_several_annotators(scored, gradosr, tmp_path: Path):
    a, b, c, d = scored.keys[:4]
    tasks = [
        {
            "data": {"key": a},
            "annotations": [annotation(1, choice("cat")), annotation({"email": "b@x"}, choice("dog"))],
        },
        {"data": {"key": b}, "annotations": [annotation(1, choice("none of these"), typed("okapi"))]},
        {"data": {"key": c}, "annotations": [annotation(1, choice("one of the known classes"))], "predictions": [7]},
        {
            "data": {"key": d},
            "annotations": [annotation(1, was_cancelled=True), annotation(2, choice("none of these"))],
        },
        {"data": {"key": d}, "annotations": []},
    ]
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    code, out, err = gradosr("label", scored.uri, "--import", str(tmp_path / "export.json"))
    assert (code, "5 labels imported, 2 rows without a label passed over" in err) == (0, True)
    rows = read_labels(Store(), scored.uri)
    assert set(rows["who"].to_pylist()) == {"annotator 1", "annotator 2", "b@x"}
    found = verdicts(rows, CLASSES)
    assert dict(zip(found["key"].to_pylist(), found["label"].to_pylist(), strict=True)) == {
        b: "okapi", c: "known", d: "unknown",
    }  # fmt: skip
    assert "1 image on which people disagree" in out
    assert "annotator 1: cat, b@x: dog" in out


def test_label_studio_json_min(scored, gradosr, tmp_path: Path):
    tasks = [
        {"key": scored.keys[0], "class": "cat", "annotator": 3, "created_at": "2026-11-01T10:00:00Z"},
        {"key": scored.keys[1], "class": "none of these", "new_class": "okapi"},
        {"key": scored.keys[2], "class": {"choices": ["none of these"]}, "new_class": ["zebra"]},
        {"key": scored.keys[3]},
    ]
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    assert gradosr("label", scored.uri, "--import", str(tmp_path / "export.json"))[0] == 0
    assert list(said(scored).values()) == ["cat", "okapi", "zebra"]


def test_label_studio_csv(scored, gradosr, tmp_path: Path):
    rows = [["annotator", "class", "key", "new_class", "updated_at"]]
    rows += [
        ["b@x", "none of these", scored.keys[0], "okapi", "2026-11-01T10:00:00Z"],
        ["1", "cat", scored.keys[1], "", ""],
    ]
    body = io.StringIO()
    csv.writer(body).writerows(rows)
    (tmp_path / "export.csv").write_text(body.getvalue())
    assert gradosr("label", scored.uri, "--import", str(tmp_path / "export.csv"))[0] == 0
    found = read_labels(Store(), scored.uri).to_pylist()
    assert [(row["label"], row["who"], row["source"]) for row in found] == [
        ("okapi", "b@x", "label_studio"), ("cat", "annotator 1", "label_studio"),
    ]  # fmt: skip


def classified(label):
    return None if label is None else {"_cls": "Classification", "_id": {"$oid": "6"}, "label": label, "tags": []}


@pytest.mark.parametrize("folder", [True, False])
def test_fiftyone_datasets(scored, gradosr, tmp_path: Path, folder):
    a, b, c, d = scored.keys[:4]
    samples = [
        {"tags": ["handed out"], "key": a, "predicted": classified("dog"), "ground_truth": classified("cat")},
        {"tags": ["handed out", "okapi"], "key": b, "predicted": classified("dog"), "ground_truth": None},
        {"tags": [], "key": c, "predicted": classified("dog"), "ground_truth": None},
        {"tags": [], "key": d, "ground_truth": classified("unknown")},
    ]
    (tmp_path / "samples.json").write_text(json.dumps({"samples": samples}))
    file = tmp_path if folder else tmp_path / "samples.json"
    assert gradosr("label", scored.uri, "--import", str(file))[0] == 0
    assert said(scored) == {a: "cat", b: "okapi", d: "unknown"}


def test_fiftyone_names_images_by_id_where_it_keeps_no_fields(scored, gradosr, tmp_path: Path):
    assert gradosr("label", scored.uri, "--next", "10", "--out", str(tmp_path / "out"))[0] == 0
    keys = [row["key"] for row in json.loads(Path(scored.uri, "labels/drawn-000001.json").read_text())["images"]][:2]
    labels = {"classes": ["okapi", "cat"], "labels": {id_of(keys[0]): 0, f"{id_of(keys[1])}.jpg": {"label": "cat"}}}
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    assert gradosr("label", scored.uri, "--import", str(tmp_path / "labels.json"))[0] == 0
    assert said(scored) == dict(zip(keys, ["okapi", "cat"], strict=True))


def test_a_key_that_a_spreadsheet_spoilt_is_found_by_its_id(scored, gradosr, tmp_path: Path):
    assert gradosr("label", scored.uri, "--next", "10", "--out", str(tmp_path / "out"))[0] == 0
    key = json.loads(Path(scored.uri, "labels/drawn-000001.json").read_text())["images"][3]["key"]
    (tmp_path / "sheet.csv").write_text(f"id,key,label\n{id_of(key)},1.2E+05,okapi\n")
    assert gradosr("label", scored.uri, "--import", str(tmp_path / "sheet.csv"))[0] == 0
    assert said(scored) == {key: "okapi"}


FAULTS = {
    "strange keys": (
        "key,label\n{0},cat\nx,cat\ny,dog\nz,cat\nw,cat\n",
        "4 of 5 images are not in {uri} (x, y, z); nothing was imported; take them out of",
    ),
    "another run": (
        "key,label\nx,cat\n",
        "1 of 1 images are not in {uri} (x); nothing was imported; are they of another run?",
    ),
    "space": (
        "key,label\n{0},red panda\n",
        "line 2: the class name 'red panda' has a space or a comma; write 'red_panda'",
    ),
    "comma": ('key,label\n{1},\n{0},"a,b"\n', "line 3: the class name 'a,b' has a space or a comma; write 'a_b'"),
    "control": ("key,label\n{0},a\x1bb\n", r"the class name 'a\\x1bb' has control characters"),
    "long": ("key,label\n{0}," + "a" * 65 + "\n", "has 65 letters; at most 64 are allowed"),
    "no label column": (
        "key,class\n{0},cat\n",
        "its first line has no column label (key, class); a file of labels has `key` and `label`",
    ),
    "empty": ("", "is empty"),
    "blank": ("key,label\n{0},\n", "has no label: 1 rows, all of them blank"),
    "no rows": ("key,label\n", "has no label: 0 rows"),
    "contradiction": ("key,label\n{0},cat\n{1},cat\n{0},dog\n", "line 4: {0} is dog here and cat in"),
    "time": ("key,label,when\n{0},cat,noon\n", "line 2: 'noon' is not a time such as 2026-11-28T09:30:00+00:00"),
    "probability": ("key,label,drawn\n{0},cat,1.5\n", "line 2: drawn is '1.5', not a probability over 0 and up to 1"),
    "broken json": ('[{"data": ', "not JSON: "),
    "other json": ('{"a": 1}', "neither Label Studio's export (JSON, JSON-MIN) nor FiftyOne's"),
    "task without key": ('[{"data": {"image": "x"}, "annotations": []}]', "task 1: has no `key`"),
    "no annotations": ('[{"data": {"key": "x"}}]', "task 1: has no list of annotations; export as JSON or JSON-MIN"),
    "numbers": ("[1]", "task 1: not a task of Label Studio"),
    "two choices": (
        json.dumps([{"data": {"key": "x"}, "annotations": [{"result": [{"value": {"choices": ["cat", "dog"]}}]}]}]),
        "task 1: has more than one label: cat, dog",
    ),
    "two tags": (
        '{"samples": [{"key": "x", "tags": ["okapi", "zebra"]}]}',
        "sample 1: has more than one label: okapi, zebra",
    ),
    "two fields": (
        json.dumps({"samples": [{"key": "x", "a": classified("x"), "b": classified("y")}]}),
        "has the fields a, b; put the labels into `ground_truth`",
    ),
    "parquet": ("PAR1 no", "not a Parquet file, or damaged"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_line_and_nothing_is_imported(scored, gradosr, tmp_path: Path, fault):
    body, told = FAULTS[fault]
    keys = scored.keys[4:6]
    for place, key in enumerate(keys):
        body, told = body.replace(f"{{{place}}}", key), told.replace(f"{{{place}}}", key)
    (tmp_path / "file").write_text(body)
    code, out, err = gradosr("label", scored.uri, "--import", str(tmp_path / "file"))
    assert (code, out, len(err.splitlines())) == (4, "", 1)
    assert err.startswith(f"gradosr: {tmp_path}/file")
    assert told.replace("{uri}", scored.uri) in err
    assert len(read_labels(Store(), scored.uri)) == 0


@pytest.mark.parametrize("body", ["key,label\nM\u00fcnchen,cat\n".encode("latin-1"), b"\xff\xfek\0e"])
def test_another_encoding_is_told(scored, gradosr, tmp_path: Path, body):
    (tmp_path / "file").write_bytes(body)
    code, _, err = gradosr("label", scored.uri, "--import", str(tmp_path / "file"))
    assert (code, len(err.splitlines())) == (4, 1)
    assert "save it as `CSV UTF-8`" in err or "has no column" in err


def test_what_does_not_go_together(scored, gradosr, tmp_path: Path):
    for arguments in (
        ["--next", "50"],
        ["--out", "x"],
        ["--next", "9", "--out", "x"],
        ["--next", "50", "--out", "x", "--import", "y"],
    ):
        assert gradosr("label", scored.uri, *arguments)[0] == 2
    code, _, err = gradosr("label", str(tmp_path / "nowhere"))
    assert (code, "no results there" in err) == (4, True)
    code, _, err = gradosr("label", scored.uri, "--import", str(tmp_path / "nowhere.csv"))
    assert (code, len(err.splitlines())) == (4, 1)


def test_the_counts_alone(scored, gradosr, tmp_path: Path):
    code, out, _ = gradosr("label", scored.uri)
    assert (code, out.splitlines()) == (
        0, ["0 images labelled, 0 of them unknown", f"next: `gradosr label {scored.uri} --next 50 --out FOLDER`"],
    )  # fmt: skip
    (tmp_path / "sheet.csv").write_text(sheet(scored, ["cat", "okapi", "okapi", "known"]))
    gradosr("label", scored.uri, "--import", str(tmp_path / "sheet.csv"), "--who", "anna")
    facts = json.loads(gradosr("label", scored.uri, "--json")[1])
    assert (facts["labelled"], facts["by_label"]) == (4, {"okapi": 2, "cat": 1, "known": 1})
    assert (facts["unknown"], facts["people"], facts["conflicts"], facts["unknown_share"]) == (2, ["anna"], 0, None)
