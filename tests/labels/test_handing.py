"""The folder that a person gets: whole, with pictures out of the archive, and none of its images handed out twice."""

import csv
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

import pytest
from labelled_run import SHARD, make_run
from PIL import Image
from pyarrow import parquet

from gradosr.audit.rows import id_of
from gradosr.labels import read_labels
from gradosr.labels.handing import SHEET, hand_out
from gradosr.labels.records import read_rounds
from gradosr.store import Store


@pytest.fixture(scope="module")
def handed(tmp_path_factory):
    root = tmp_path_factory.mktemp("handed")
    run = make_run(root)
    facts = hand_out(Store(), run.uri, 40, 0, root / "out")
    return run, root / "out", facts


def test_a_round_is_recorded_and_written_whole(handed):
    run, out, facts = handed
    assert sorted(path.name for path in out.iterdir()) == [
        "fiftyone", "label.html", "label_studio.json", "label_studio.xml", "sheet.csv",
    ]  # fmt: skip
    (made,) = read_rounds(Store(), run.uri)
    assert (facts["round"], facts["images"], len(made.images)) == (1, 40, 40)
    assert facts["notes"] == [f"40 images to label: open {out}/label.html"]
    assert [path.name for path in out.parent.iterdir() if path.name.startswith(".")] == []


def test_the_sheet_names_every_image_and_no_cell_is_a_formula(handed):
    run, out, _ = handed
    body = (out / "sheet.csv").read_bytes()
    assert body.startswith(b"\xef\xbb\xbf")
    rows = list(csv.DictReader(body.decode("utf-8-sig").splitlines(keepends=True)))
    assert list(rows[0]) == list(SHEET)
    assert {row["id"] for row in rows} == {id_of(image.key) for image in read_rounds(Store(), run.uri)[0].images}
    assert {row["label"] for row in rows} == {""}
    assert all(row["uri"].endswith(f"/archive/{SHARD}") for row in rows)
    assert not any(value.startswith(("=", "+", "@")) for row in rows for value in row.values())


def test_images_of_one_cluster_lie_together(handed):
    _, out, _ = handed
    clusters = [task["data"]["cluster"] for task in json.loads((out / "label_studio.json").read_text())]
    sizes = Counter(one for one in clusters if one)
    assert len(sizes) == 2
    assert min(sizes.values()) >= 5
    for cluster, size in sizes.items():
        first = clusters.index(cluster)
        assert clusters[first : first + size] == [cluster] * size


def test_label_studio_can_name_a_new_class(handed):
    run, out, _ = handed
    view = ElementTree.parse(out / "label_studio.xml").getroot()
    choices = [choice.get("value") for choice in view.iter("Choice")]
    assert choices == ["none of these", "one of the known classes", "cat", "dog", "ship"]
    assert view.find("TextArea").attrib.items() >= {"name": "new_class", "toName": "image"}.items()
    tasks = json.loads((out / "label_studio.json").read_text())
    assert all(task["data"]["image"].startswith("data:image/jpeg;base64,") for task in tasks)
    assert "label" not in tasks[0]["data"]  # a label of the archive would tell whoever labels
    assert {task["data"]["key"] for task in tasks} <= set(run.keys)


def test_fiftyone_gets_samples_with_pictures(handed):
    _, out, _ = handed
    dataset = json.loads((out / "fiftyone" / "fiftyone.json").read_text())
    assert len(dataset["samples"]) == 40
    for sample in dataset["samples"]:
        with Image.open(out / "fiftyone" / sample["filepath"]) as picture:
            assert picture.format == "JPEG"
        assert (sample["tags"], sample["ground_truth"], sample["label"]) == (["handed out"], None, None)
    assert "ground_truth" in dataset["sample_fields"]


def test_the_written_sheet_and_tasks_come_back(scored, gradosr, tmp_path):
    assert gradosr("label", scored.uri, "--next", "40", "--out", str(tmp_path / "out"))[0] == 0
    sheet = tmp_path / "out" / "sheet.csv"
    sheet.write_bytes(sheet.read_bytes().replace(b',""\r\n', b',"okapi"\r\n'))
    assert gradosr("label", scored.uri, "--import", str(sheet), "--who", "anna")[0] == 0
    tasks = json.loads((tmp_path / "out" / "label_studio.json").read_text())
    for task in tasks:
        result = [{"from_name": "class", "type": "choices", "value": {"choices": ["none of these"]}}]
        task["annotations"] = [{"completed_by": 1, "result": result}]
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    assert gradosr("label", scored.uri, "--import", str(tmp_path / "tasks.json"))[0] == 0
    samples = tmp_path / "out" / "fiftyone" / "fiftyone.json"
    dataset = json.loads(samples.read_text())
    for sample in dataset["samples"]:
        sample["ground_truth"] = {"_cls": "Classification", "label": "okapi"}
    samples.write_text(json.dumps(dataset))
    assert gradosr("label", scored.uri, "--import", str(samples), "--who", "ben")[0] == 0
    labels = read_labels(Store(), scored.uri)
    assert Counter(labels["source"].to_pylist()) == {"csv": 40, "label_studio": 40, "fiftyone": 40}
    facts = json.loads(gradosr("label", scored.uri, "--json")[1])
    assert (facts["labelled"], facts["by_label"], facts["waiting"], facts["conflicts"]) == (40, {"okapi": 40}, 0, 0)
    assert sum(1 / drawn for drawn in labels["drawn"].to_pylist()[:40]) == pytest.approx(80)
    assert facts["unknown_share"]["images"] == 80


def test_a_folder_that_may_hold_labels_is_left_alone(scored, gradosr, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sheet.csv").write_text("mine")
    code, out, err = gradosr("label", scored.uri, "--next", "10", "--out", str(tmp_path / "out"))
    assert (code, out, len(err.splitlines())) == (4, "", 1)
    assert "is not empty; choose a new folder" in err
    assert (tmp_path / "out" / "sheet.csv").read_text() == "mine"
    assert read_rounds(Store(), scored.uri) == []


def test_an_archive_that_is_gone_costs_pictures_alone(scored, gradosr, tmp_path):
    (tmp_path / "archive" / SHARD).unlink()
    code, _, err = gradosr("label", scored.uri, "--next", "10", "--out", str(tmp_path / "out"))
    assert (code, "10 pictures missing: no longer in the archive" in err) == (0, True)
    assert (tmp_path / "out" / "sheet.csv").read_text("utf-8-sig").count(SHARD) >= 10


def test_two_rounds_share_no_image(scored, gradosr, tmp_path):
    for name in ("one", "two"):
        assert gradosr("label", scored.uri, "--next", "30", "--out", str(tmp_path / name))[0] == 0
    rounds = read_rounds(Store(), scored.uri)
    keys = [image.key for made in rounds for image in made.images]
    assert len(set(keys)) == len(keys) == 60
    assert [made.frame for made in rounds] == [1, 1]
    assert "60 images handed out, 60 of them without a label yet" in gradosr("label", scored.uri)[1]


def test_a_run_without_features_has_no_clusters(scored, gradosr, tmp_path):
    (part,) = Path(scored.uri, "parts").iterdir()
    table = parquet.read_table(part)
    parquet.write_table(table.drop_columns(["features"]), part)
    assert gradosr("label", scored.uri, "--next", "10", "--out", str(tmp_path / "out"))[0] == 0
    tasks = json.loads((tmp_path / "out" / "label_studio.json").read_text())
    assert {task["data"]["cluster"] for task in tasks} == {None}


def test_two_people_who_draw_at_once_share_no_image(scored, tmp_path):
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda name: hand_out(Store(), scored.uri, 20, 0, tmp_path / name), ["one", "two"]))
    rounds = read_rounds(Store(), scored.uri)
    assert [made.number for made in rounds] == [1, 2]
    assert len({image.key for made in rounds for image in made.images}) == 40
    sheets = [(tmp_path / name / "sheet.csv").read_text("utf-8-sig") for name in ("one", "two")]
    assert sorted(sheet.count("\n") for sheet in sheets) == [21, 21]
    assert sheets[0] != sheets[1]


@pytest.mark.slow
def test_a_run_in_a_bucket(scored, gradosr, bucket, tmp_path):
    for path in Path(scored.uri).rglob("*"):
        if path.is_file():
            Store().write(f"{bucket}/run/{path.relative_to(scored.uri)}", path.read_bytes())
    assert gradosr("label", f"{bucket}/run", "--next", "10", "--out", str(tmp_path / "out"))[0] == 0
    sheet = tmp_path / "out" / "sheet.csv"
    sheet.write_bytes(sheet.read_bytes().replace(b',""\r\n', b',"okapi"\r\n'))
    Store().write(f"{bucket}/labels.csv", sheet.read_bytes())
    assert gradosr("label", f"{bucket}/run", "--import", f"{bucket}/labels.csv")[0] == 0
    assert read_labels(Store(), f"{bucket}/run").num_rows == 10
    assert len(read_rounds(Store(), f"{bucket}/run")) == 1


def test_a_command_that_was_killed_is_repeated_without_a_loss(scored, gradosr, tmp_path):
    out = tmp_path / "out"
    (out / ".writing-cafe").mkdir(parents=True)  # killed before the images were on record: they are not handed out
    (out / ".writing-cafe" / "sheet.csv").touch()
    command = ("label", scored.uri, "--next", "10", "--out", str(out))
    assert gradosr(*command)[0] == 0
    (made,) = read_rounds(Store(), scored.uri)
    files = {path.name for path in out.iterdir()}
    assert not (out / ".writing-cafe").exists()
    sheet = (out / "sheet.csv").read_bytes()

    (out / f".writing-{made.token}").mkdir()  # killed after that, amid the last step
    for name in ("sheet.csv", "fiftyone"):
        (out / name).rename(out / f".writing-{made.token}" / name)
    code, _, err = gradosr(*command)
    assert (code, f"10 images to label: open {out}/label.html" in err) == (0, True)
    assert {path.name for path in out.iterdir()} == files
    assert (out / "sheet.csv").read_bytes() == sheet
    assert read_rounds(Store(), scored.uri) == [made]


def test_an_unfinished_run_is_told(scored, gradosr, tmp_path):
    Path(scored.uri, "_SUCCESS").unlink()
    code, _, err = gradosr("label", scored.uri, "--next", "10", "--out", str(tmp_path / "out"))
    assert (code, "the run is not finished: the images are of the parts there are" in err) == (0, True)


def test_labels_from_elsewhere_are_left_out_and_begin_a_frame_that_lasts(scored, gradosr, tmp_path):
    (tmp_path / "labels.csv").write_text(f"key,label\n{scored.keys[5]},cat\n{scored.keys[60]},okapi\n")
    assert gradosr("label", scored.uri, "--import", str(tmp_path / "labels.csv"))[0] == 0
    for name in ("one", "two"):
        assert gradosr("label", scored.uri, "--next", "20", "--out", str(tmp_path / name))[0] == 0
    rounds = read_rounds(Store(), scored.uri)
    assert [made.frame for made in rounds] == [1, 1]
    assert [{place.key for place in made.before} for made in rounds] == [{scored.keys[5], scored.keys[60]}] * 2
    assert not {scored.keys[5], scored.keys[60]} & {image.key for made in rounds for image in made.images}


def test_a_damaged_record_is_named(scored, gradosr, tmp_path):
    Path(scored.uri, "labels").mkdir()
    Path(scored.uri, "labels", "drawn-000001.json").write_text("{}")
    for arguments in ((), ("--next", "10", "--out", str(tmp_path / "out"))):
        code, out, err = gradosr("label", scored.uri, *arguments)
        assert (code, out, len(err.splitlines())) == (4, "", 1)
        assert "drawn-000001.json: not a record of images handed out, or damaged" in err
