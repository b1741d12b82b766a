"""The protocol: every detector on the same classifiers and images, fitted on known images alone."""

import copy
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from gradosr.jobs.cli import run
from PIL import Image

from gradosr.config import OsrProtocol, TrainSettings, load_job
from gradosr.gradients import GradientEngine
from gradosr.lab.evaluation.far import MADE, make
from gradosr.lab.evaluation.metrics import auroc, macro_f1
from gradosr.lab.evaluation.protocol import run_protocol
from gradosr.lab.evaluation.tables import bootstrap, markdown, measure
from gradosr.run.console import Notes
from gradosr.scoring import observer

pytestmark = pytest.mark.slow  # networks are trained

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200), "grey": (120, 120, 120)}
DETECTORS = {
    "one_class": {"kind": "one_class"},
    "max_logit": {"kind": "max_logit", "mirror": True},
    "one view": {"kind": "max_logit"},
}


def write_images(folder: Path, count: int, seed: int) -> None:
    """Noisy pictures of each colour, in a folder named by it."""
    draws = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = (np.array(colour) + draws.normal(0, 30, (16, 16, 3))).clip(0, 255).astype(np.uint8)
            body = io.BytesIO()
            Image.fromarray(pixels).save(body, "PNG")
            (folder / name / f"{seed}-{number:03}.png").write_bytes(body.getvalue())


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A protocol that was run: two tasks of two known colours each, trained here; and its document."""
    folder = tmp_path_factory.mktemp("osr")
    write_images(folder / "train", 60, 1)
    write_images(folder / "test", 20, 2)
    write_images(folder / "other", 4, 3)
    transform = {"resize": [16, 16], "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    classifier = {"arch": "tiny_net:tiny", "args": {"num_classes": 2}, "transform": transform}
    fitted = {"train": {"epochs": 3, "batch_size": 16, "learning_rate": 0.05}, "held_out": 0.6}
    document = {
        "data": str(folder),
        "input": {"kind": "images", "uri": "{data}/train/"},
        "test": {"kind": "images", "uri": "{data}/test/"},
        "far": {"noise": 15, "textures": 12, "other": {"kind": "images", "uri": "{data}/other/"}},
        "shows": {"red": ["red"], "blue": ["grey"]},
        "detectors": DETECTORS,
        "tasks": [
            {"name": "warm", "classifier": classifier | {"classes": ["red", "green"]}, **fitted},
            {"name": "cold", "classifier": classifier | {"classes": ["blue", "green"]}, **fitted},
        ],
        "output": "{data}/out",
        "resamplings": 50,
    }
    (folder / "osr.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    assert run(["evaluate", "--protocol", "osr", str(folder / "osr.yaml")]) == 0
    return folder, document


def protocol_of(folder: Path, document: dict[str, Any]) -> OsrProtocol:
    (folder / "again.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    return load_job(OsrProtocol, str(folder / "again.yaml"))


def test_every_image_gets_every_score_and_what_shows_a_known_class_is_no_far_image(done: tuple[Path, Any]) -> None:
    folder, _ = done
    for task, other in (("warm", 12), ("cold", 12)):
        rows = pq.read_table(folder / "out" / task / "scores.parquet")
        assert rows.column_names == ["set", "key", "label", "predicted", *DETECTORS]
        sets = rows["set"].to_pylist()
        assert {name: sets.count(name) for name in set(sets)} | {"calibration": 0} == {
            "calibration": 0, "test": 80, "noise": 15, "textures": 12, "other": other,
        }  # fmt: skip
        assert all(np.isfinite(rows[name].to_numpy()).all() for name in DETECTORS)
        shown = {label for name, label in zip(sets, rows["label"].to_pylist(), strict=True) if name == "other"}
        assert shown == set(COLOURS) - {"red" if task == "warm" else "grey"}


def test_metrics_are_those_of_the_rows(done: tuple[Path, Any]) -> None:
    folder, _ = done
    facts = json.loads((folder / "out" / "results.json").read_text())
    assert (facts["first"], [task["name"] for task in facts["tasks"]]) == ("one_class", ["warm", "cold"])
    for task in facts["tasks"]:
        rows = pq.read_table(folder / "out" / task["name"] / "scores.parquet").to_pydict()
        test = [i for i, name in enumerate(rows["set"]) if name == "test"]
        unknown = np.array([rows["label"][i] not in task["classes"] for i in test])
        for name in DETECTORS:
            scores = np.array([rows[name][i] for i in test])
            found = task["detectors"][name]
            assert found["auroc"] == pytest.approx(auroc(scores, unknown))
            known = sorted(rows[name][i] for i, one in enumerate(rows["set"]) if one == "calibration")
            p_values = np.array([(1 + sum(k >= s for k in known)) / (len(known) + 1) for s in scores])
            assert found["false_alarms"] == pytest.approx((p_values <= 0.05)[~unknown].mean())
            far = np.array([value for value, one in zip(rows[name], rows["set"], strict=True) if one == "noise"])
            both = np.concatenate([scores[~unknown], far])
            assert found["far"]["noise"] == pytest.approx(auroc(both, np.arange(len(both)) >= (~unknown).sum()))
        assert task["best_baseline"] in ("max_logit", "one view")
        assert {name.partition("/")[0] for name in task["coordinates"]} == {"all_hot", "predicted", "max_logit"}
    tables = (folder / "out" / "tables.md").read_text()
    assert f"{facts['tasks'][0]['detectors']['one_class']['auroc']:.4f}" in tables
    for name in ("roc", "scores", "p_values", "coordinates"):
        assert (folder / "out" / f"{name}.svg").read_bytes().startswith(b"<?xml")


def test_the_same_command_does_nothing_again_and_another_detector_scores_without_training(
    done: tuple[Path, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, document = done
    before = {path: path.stat().st_mtime_ns for path in (folder / "out").glob("*/*")}
    scores = {task: pq.read_table(folder / "out" / task / "scores.parquet") for task in ("warm", "cold")}
    assert run(["evaluate", "--protocol", "osr", str(folder / "osr.yaml"), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["first"] == "one_class"
    assert "training classifier" not in err
    assert {path: path.stat().st_mtime_ns for path in (folder / "out").glob("*/*")} == before
    more = copy.deepcopy(document)
    more["detectors"]["gradients"] = {
        "kind": "one_class",
        "weights": {"max_logit": 0, "scale": 0, "middle": 0, "beyond": 0},
    }
    (folder / "more.yaml").write_text(yaml.safe_dump(more, sort_keys=False))
    assert run(["evaluate", "--protocol", "osr", str(folder / "more.yaml")]) == 0
    assert "training classifier" not in capsys.readouterr().err
    for task, old in scores.items():
        new = pq.read_table(folder / "out" / task / "scores.parquet")
        np.testing.assert_allclose(new["one_class"].to_numpy(), old["one_class"].to_numpy(), rtol=1e-3, atol=1e-3)
        assert "gradients" in new.column_names


def test_unknown_images_decide_nothing(done: tuple[Path, Any]) -> None:
    """Whatever the images of unknown classes show, the scores of the known stay as they are."""
    folder, document = done
    other = copy.deepcopy(document) | {"data": str(folder / "else"), "tasks": document["tasks"][:1]}
    other["far"] = {}
    for name in ("train", "test", "out"):
        shutil.copytree(folder / name, folder / "else" / name)
    for path in [*(folder / "else").glob("t*/blue/*"), *(folder / "else").glob("t*/grey/*")]:
        path.write_bytes((folder / "train" / "red" / "1-000.png").read_bytes())
    (folder / "else" / "out" / "warm" / "task.json").unlink()
    with Notes() as notes:
        (scores,) = run_protocol(protocol_of(folder, other), notes)
    before = pq.read_table(folder / "out" / "warm" / "scores.parquet")
    for name in ("calibration", "test"):
        new, old = (
            rows.filter(pc.and_(pc.equal(rows["set"], name), pc.is_in(rows["label"], pa.array(["red", "green"]))))
            for rows in (scores.rows, before)
        )
        assert new["key"].to_pylist() == old["key"].to_pylist()
        np.testing.assert_allclose(new["one_class"].to_numpy(), old["one_class"].to_numpy(), rtol=1e-4, atol=1e-4)


def test_layers_that_no_detector_asks_for_are_not_computed_and_no_score_changes(
    done: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, document = done
    computed: list[float] = []
    engine = observer.GradientEngine

    def watched(*given: Any, **options: Any) -> GradientEngine:
        computed.append(options["layers"])
        return engine(*given, **options)

    fewer = copy.deepcopy(document) | {"objectives": [], "far": {}, "tasks": document["tasks"][:1]}
    fewer |= {"output": "{data}/fewer"}
    fewer |= {"detectors": {"one_class": {"kind": "one_class"}, "energy": {"kind": "energy", "mirror": True}}}
    shutil.copytree(folder / "out" / "warm", folder / "fewer" / "warm")  # its classifier is not trained again
    before = pq.read_table(folder / "out" / "warm" / "scores.parquet")
    monkeypatch.setattr(observer, "GradientEngine", watched)
    with Notes() as notes:
        (scores,) = run_protocol(protocol_of(folder, fewer), notes)
    assert computed[-1] == 0.2
    test = pc.is_in(before["set"], pa.array(["calibration", "test"]))
    np.testing.assert_allclose(
        scores.rows["one_class"].to_numpy(), before.filter(test)["one_class"].to_numpy(), rtol=1e-4, atol=1e-4
    )


def test_of_the_other_classes_those_alone_that_a_task_names_are_unknown(
    done: tuple[Path, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, document = done
    other = copy.deepcopy(document) | {"tasks": [document["tasks"][0] | {"unknown": ["grey"]}]}
    other["output"] = str(folder / "chosen")
    shutil.copytree(folder / "out", folder / "chosen")
    (folder / "chosen.yaml").write_text(yaml.safe_dump(other, sort_keys=False))
    command = ["evaluate", "--protocol", "osr", str(folder / "chosen.yaml"), "--json"]
    assert run(command) == 0
    out, err = capsys.readouterr()
    assert (json.loads(out)["tasks"][0]["unknown"], "training classifier" in err) == (20, False)
    new, old = (pq.read_table(folder / name / "warm" / "scores.parquet") for name in ("chosen", "out"))
    new, old = (rows.filter(pc.equal(rows["set"], "test")) for rows in (new, old))
    kept = old.filter(pc.not_equal(old["label"], "blue"))
    assert new["key"].to_pylist() == kept["key"].to_pylist()
    np.testing.assert_allclose(new["one_class"].to_numpy(), kept["one_class"].to_numpy(), rtol=1e-3, atol=1e-3)
    assert run([*command, "--set", "tasks=[" + json.dumps(other["tasks"][0] | {"unknown": ["gray"]}) + "]"]) == 4
    assert f"{folder}/test/: no image of gray, unknown to task warm" in capsys.readouterr().err


def test_another_recipe_trains_again(done: tuple[Path, Any]) -> None:
    folder, document = done
    other = copy.deepcopy(document) | {"tasks": copy.deepcopy(document["tasks"][:1])}
    other["tasks"][0]["train"] |= {"epochs": 1}
    other["output"] = str(folder / "recipe")
    shutil.copytree(folder / "out", folder / "recipe")
    with Notes() as notes:
        list(run_protocol(protocol_of(folder, other), notes))
    assert len(list((folder / "recipe" / "warm").glob("classifier-*.safetensors"))) == 2


def test_where_every_class_is_known_far_images_alone_are_measured(
    done: tuple[Path, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, document = done
    other = copy.deepcopy(document) | {"tasks": document["tasks"][:1], "output": str(folder / "all-known")}
    classifier = other["tasks"][0]["classifier"] | {"args": {"num_classes": 4}, "classes": list(COLOURS)}
    other["tasks"] = [other["tasks"][0] | {"classifier": classifier}]
    (folder / "known.yaml").write_text(yaml.safe_dump(other, sort_keys=False))
    assert run(["evaluate", "--protocol", "osr", str(folder / "known.yaml"), "--json"]) == 0
    (task,) = json.loads(capsys.readouterr().out)["tasks"]
    found = task["detectors"]["one_class"]
    assert (task["unknown"], found["auroc"], task["coordinates"]) == (0, None, {})
    rows = pq.read_table(folder / "all-known" / "warm" / "scores.parquet").to_pydict()
    known = sorted(v for v, one in zip(rows["one_class"], rows["set"], strict=True) if one == "calibration")
    truth, decided = [], []
    for score, one, label, predicted in zip(
        *(rows[k] for k in ("one_class", "set", "label", "predicted")), strict=True
    ):
        if one in ("test", "noise"):
            truth.append("unknown" if one == "noise" else label)
            flagged = (1 + sum(k >= score for k in known)) / (len(known) + 1) <= 0.05
            decided.append("unknown" if flagged else predicted)
    assert found["far_macro_f1"]["noise"] == pytest.approx(macro_f1(truth, decided))


def test_a_test_set_without_unknown_classes_is_one_clear_line(
    done: tuple[Path, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = done
    for name in ("red", "green"):
        shutil.copytree(folder / "test" / name, folder / "alone" / name)
    config, test = str(folder / "osr.yaml"), f"test.uri={folder}/alone/"
    command = ["evaluate", "--protocol", "osr", config, "--set", test, "--set", f"output={folder}/no"]
    assert run([*command, "--set", "far={}"]) == 4
    assert "need known and unknown classes of every task" in capsys.readouterr().err
    assert run(["evaluate", "--protocol", "osr", config, "--set", "far.dots=5"]) == 2
    assert "far: dots: only digits, noise, textures, strokes, clouds, shapes can be made" in capsys.readouterr().err


def test_tables_are_written_after_every_task(done: tuple[Path, Any], capsys: pytest.CaptureFixture[str]) -> None:
    folder, document = done
    other = copy.deepcopy(document)
    other["tasks"][1] |= {"unknown": ["gray"]}
    other["output"] = str(folder / "ended")
    shutil.copytree(folder / "out" / "warm", folder / "ended" / "warm")
    protocol_of(folder, other)
    assert run(["evaluate", "--protocol", "osr", str(folder / "again.yaml")]) == 4
    assert "unknown to task cold" in capsys.readouterr().err
    (found,) = json.loads((folder / "ended" / "results.json").read_text())["tasks"]
    assert found["name"] == "warm"
    assert "| warm |" in (folder / "ended" / "tables.md").read_text()


def test_a_recipe_may_be_the_protocols(done: tuple[Path, Any]) -> None:
    folder, document = done
    other = copy.deepcopy(document)
    other["train"], _ = (task.pop("train") for task in other["tasks"])
    with Notes() as notes:
        list(run_protocol(protocol_of(folder, document), notes))
        before = {path: path.stat().st_mtime_ns for path in (folder / "out").glob("*/*")}
        protocol = protocol_of(folder, other)
        assert len(list(run_protocol(protocol, notes))) == 2
    assert {path: path.stat().st_mtime_ns for path in (folder / "out").glob("*/*")} == before
    own = protocol.tasks[0].model_copy(update={"train": TrainSettings(epochs=7)})
    assert protocol.with_recipe(own) == own
    weights = own.classifier.model_copy(update={"weights": "w.safetensors"})
    elsewhere = own.model_copy(update={"train": None, "classifier": weights})
    assert protocol.with_recipe(elsewhere) == elsewhere


def test_several_architectures_are_not_averaged(done: tuple[Path, Any]) -> None:
    folder, document = done
    protocol = protocol_of(folder, document)
    with Notes() as notes:
        tasks = [measure(protocol, one) for one in run_protocol(protocol, notes)]
    assert "## tiny_net" not in markdown(protocol, tasks).replace("###", "")
    warm, cold = protocol.tasks
    other = cold.model_copy(update={"classifier": cold.classifier.model_copy(update={"arch": "tiny_net:other"})})
    text = markdown(protocol.model_copy(update={"tasks": (warm, other)}), tasks)
    first, second = text.split("## tiny_net:other\n")
    assert first.startswith("## tiny_net:tiny\n")
    assert ("| warm |" in first, "| cold |" in first) == (True, False)
    assert ("| warm |" in second, "| cold |" in second) == (False, True)


def test_tables_hold_the_first_detector_against_the_best_baseline(done: tuple[Path, Any]) -> None:
    folder, document = done
    protocol = protocol_of(folder, document)
    with Notes() as notes:
        tasks = [measure(protocol, one) for one in run_protocol(protocol, notes)]
    gains = [100 * (t.detectors["one_class"].auroc - t.detectors[t.best_baseline].auroc) for t in tasks]
    text = markdown(protocol, tasks)
    assert f"| mean |  |  | {np.mean(gains):+.2f} |" in text
    assert text.count("one_class (image and mirror; 1 backward)") == 1


def test_without_matplotlib_it_is_told_before_the_work(
    done: tuple[Path, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = done
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delitem(sys.modules, "gradosr.lab.evaluation.plots")
    assert run(["evaluate", "--protocol", "osr", str(folder / "osr.yaml"), "--set", f"output={folder}/none"]) == 2
    assert capsys.readouterr().err == "gradosr: plots need matplotlib: pip install 'gradosr[evaluate]'\n"
    assert not (folder / "none").exists()


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("size", [(32, 32), (17, 40)])
def test_made_images_are_of_the_size_and_differ_and_are_the_same_again(name: str, size: tuple[int, int]) -> None:
    images = make(name, 60, size, 0)
    assert (images.shape, images.dtype) == ((60, 3, *size), torch.uint8)
    assert len({image.numpy().tobytes() for image in images}) == 60
    assert torch.equal(make(name, 60, size, 0), images)
    assert (images.float().flatten(1).std(1) > 5).all()


def test_the_bootstrap_interval_is_that_of_resampled_aurocs() -> None:
    draws = np.random.default_rng(0)
    known, far = draws.normal(0, 1, 300).round(1), draws.normal(1, 1, 80).round(1)
    low, high = bootstrap(known, far, 400, 1)
    slow = []
    for _ in range(400):
        a, b = draws.choice(known, 300), draws.choice(far, 80)
        slow.append(auroc(np.concatenate([a, b]), np.arange(380) >= 300))
    assert (low, high) == pytest.approx(np.quantile(slow, [0.025, 0.975]), abs=0.012)
