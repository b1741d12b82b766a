"""The evaluation of a run's labelled rows: by class, what a detector costs, and the sentence that recommends one."""

import json
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradosr.jobs.cli import run
from made_runs import CLASSES, calibration, rows, write_run
from tiny import local_job, run_here, write_archive

from gradosr.audit.proportions import wilson
from gradosr.config import BaselineSettings, OneClassSettings, Signals, TransferSettings
from gradosr.lab.evaluation import advice
from gradosr.lab.evaluation.advice import advise
from gradosr.lab.evaluation.evaluation import evaluate_rows
from gradosr.lab.evaluation.metrics import auroc
from gradosr.lab.evaluation.rows import LabelledRows, read_rows
from gradosr.lab.evaluation.summary import table
from gradosr.store import Store

DEFAULT = OneClassSettings().signals


def made_run(folder: Path, labels: list[str], seed: int = 0) -> str:
    """A run of images of these labels; those that are no class of the bundle score higher, some of them."""
    draws = np.random.default_rng(seed)
    scores = draws.normal([0.0 if label in CLASSES else 1.5 for label in labels])
    made = [
        {**row, "label": label, "confidence": 1 / (2 + np.exp(score)), "max_logit": -score, "energy": score + noise}
        for row, label, score, noise in zip(
            rows("a.tar", scores, calibration()), labels, scores, draws.normal(0, 0.3, len(labels)), strict=True
        )
    ]
    return write_run(folder, {"part-a": made}, calibration())


def labelled(own: np.ndarray, cheap: np.ndarray, unknown: np.ndarray) -> LabelledRows:
    """Rows with these unknown scores and energies; the other scores say nothing."""
    labels = np.where(unknown, "plane", "cat").astype(object)
    scores = {"unknown score": own, "MSP": np.zeros(len(own)), "max logit": np.zeros(len(own)), "energy": cheap}
    return LabelledRows("run", labels, np.full(len(own), "cat", object), unknown, own > 2, scores, 0, True)


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout, and stderr as one line."""
    code = run(["evaluate", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, " ".join(err.split())


def test_each_class_has_its_share_with_its_interval_the_worst_first(tmp_path: Path) -> None:
    labels = [*CLASSES * 60, *[f"new-{place % 14:02}" for place in range(200)]]
    uri = made_run(tmp_path / "run", labels)
    found = evaluate_rows(read_rows(Store(), uri))
    called = {name: [] for name in labels}
    for row, label in zip(read_rows(Store(), uri).called, labels, strict=True):
        called[label].append(bool(row))
    for rates, sign in ((found.false_alarms_by_class, -1), (found.found_by_class, 1)):
        assert [sign * one.share for one in rates] == sorted(sign * one.share for one in rates)
        for one in rates:
            flags = called[one.name]
            assert (one.images, one.called_unknown) == (len(flags), sum(flags))
            assert one.share == pytest.approx(np.mean(flags))
            assert (one.low, one.high) == wilson(sum(flags), len(flags))
    assert {one.name for one in found.false_alarms_by_class} == set(CLASSES)
    assert len(found.found_by_class) == 14
    assert json.loads(json.dumps(found.facts()))["found_by_class"][0]["name"] == found.found_by_class[0].name
    listed = table(found).partition("found by unknown class, fewest first")[2]
    assert listed.count("new-") == 10
    assert "  and 4 more (--json)" in listed


def test_names_of_classes_are_harmless_on_a_terminal(tmp_path: Path) -> None:
    uri = made_run(tmp_path / "run", ["cat"] * 20 + ["new\x1b[2J" + "long" * 50] * 20)
    text = table(evaluate_rows(read_rows(Store(), uri)))
    assert "\x1b" not in text
    assert "new\\x1b[2J" in text
    assert max(len(line) for line in text.splitlines() if "new" in line) < 100


@pytest.mark.parametrize(
    ("signals", "passes"),
    [
        (Signals(), 1),
        (Signals(mirror=True), 2),
        (Signals(objectives=("all_hot",)), 2),
        (DEFAULT, 2.4),
        (OneClassSettings(mirror=False).signals, 1.2),
        (TransferSettings(objectives=("all_hot", "predicted")).signals, 3),
        (BaselineSettings(kind="energy", mirror=True).signals, 2),
    ],
)
def test_passes_are_views_times_forward_and_the_share_of_backward(signals: Signals, passes: float) -> None:
    assert signals.passes == passes


def test_the_sentence_says_what_to_do(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    unknown = np.arange(4000) >= 2400
    signal = np.where(unknown, 1.5, 0.0) + draws.normal(0, 1, 4000)

    def noisy(much: float) -> np.ndarray:
        return np.asarray(signal + draws.normal(0, much, 4000))

    cases: list[tuple[str, LabelledRows, Signals | None, str]] = [
        (
            advice.AS_GOOD,
            labelled(noisy(0.05), noisy(0.05), unknown),
            DEFAULT,
            "takes 2 passes per image instead of 2.4",
        ),
        (advice.BETTER, labelled(noisy(1), noisy(0.05), unknown), DEFAULT, "detector: {kind: energy, mirror: true}"),
        (
            advice.BETTER,
            labelled(noisy(1), noisy(0.05), unknown),
            Signals(),
            "at the same cost: detector: {kind: energy}",
        ),
        (advice.BETTER, labelled(noisy(1), noisy(0.05), unknown), None, "]): detector: {kind: energy}"),
        (advice.WORSE, labelled(noisy(0.05), noisy(1), unknown), DEFAULT, "keep the detector"),
        (advice.KEEP, labelled(signal, signal, unknown), Signals(), "keep the detector"),
        (advice.UNDECIDED, labelled(noisy(0.9)[::100], noisy(1)[::100], unknown[::100]), DEFAULT, "label more"),
    ]
    for verdict, images, signals, words in cases:
        found = advise(images, signals)
        assert found is not None
        assert (found.verdict, found.score) == (verdict, "energy")
        areas = [auroc(images.scores[name], images.unknown) for name in ("energy", "unknown score")]
        assert (found.auroc, found.own_auroc) == pytest.approx(areas)
        change = found.difference
        assert change["estimate"] == pytest.approx(areas[0] - areas[1])
        assert change["low"] <= change["estimate"] <= change["high"]
        assert words in found.sentence()
    assert advise(labelled(signal[2390:2401], signal[2390:2401], unknown[2390:2401]), DEFAULT) is None


def test_the_bundle_tells_what_its_detector_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_archive(Store(), f"{tmp_path}/archive")
    run_here(local_job(tmp_path))
    signals = Signals.model_validate(
        {key: value for key, value in json.loads((tmp_path / "bundle/bundle.json").read_text()).items()
         if key in Signals.model_fields}
    )  # fmt: skip
    command = (tmp_path / "results", "--known", "cat,dog", "--json")

    def passes(*more: object) -> tuple[list[float | None], str]:
        code, out, err = told(capsys, *command, *more)
        assert code == 0
        return [one["passes"] for one in json.loads(out)["scores"].values()], err

    one = 2.0 if signals.mirror else 1.0
    assert passes() == ([signals.passes, one, one, one], "")
    assert signals.passes > one
    (tmp_path / "bundle").rename(tmp_path / "moved")
    unknown, err = passes()
    assert unknown == [None] * 4
    assert err.startswith(
        f"gradosr: what the detector costs is not known: the bundle cannot be read ({tmp_path}/bundle"
    )
    assert passes("--set", f"bundle={tmp_path}/moved") == ([signals.passes, one, one, one], "")
    body = json.loads((tmp_path / "moved/bundle.json").read_text())
    (tmp_path / "moved/bundle.json").write_text(json.dumps(body | {"false_alarm_rate": 0.2}))
    code, _, err = told(capsys, *command, "--set", f"bundle={tmp_path}/moved")
    assert (code, err) == (2, f"gradosr: bundle: {tmp_path}/moved is not the bundle that the run was scored with")


@pytest.mark.slow
def test_curves_are_written_as_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = made_run(tmp_path / "run", ["cat", "plane", "dog"] * 700)
    code, out, _ = told(capsys, uri, "--out", tmp_path / "curves")
    assert code == 0
    assert "AUROC" in out
    assert sorted(path.name for path in (tmp_path / "curves").iterdir()) == ["risk-coverage.svg", "roc.svg"]
    for path in (tmp_path / "curves").iterdir():
        assert ET.parse(path).getroot().tag.endswith("svg")
        assert path.stat().st_size < 300_000
        assert "<!-- the run's threshold -->" in path.read_text()
    assert "<!-- unknown score, AUROC " in (tmp_path / "curves" / "roc.svg").read_text()
    assert told(capsys, uri, "--protocol", "osr", "--out", "x")[0] == 2


def test_without_matplotlib_one_line_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = made_run(tmp_path / "run", ["cat", "plane"] * 20)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delitem(sys.modules, "gradosr.lab.evaluation.plots", raising=False)
    line = "gradosr: plots need matplotlib: pip install 'gradosr[evaluate]'"
    assert told(capsys, uri, "--out", tmp_path / "curves") == (2, "", line)
    assert told(capsys, uri)[0] == 0


def test_without_known_images_there_is_nothing_to_measure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = made_run(tmp_path / "run", ["Cat", "plane"] * 5)
    code, out, err = told(capsys, uri)
    assert (code, out) == (4, "")
    assert err == (
        f"gradosr: {uri}: 10 labelled images and none of a known class: the labels are Cat, plane, the known classes "
        "cat, dog, ship; every figure needs known images, labelled by these names"
    )


def test_without_unknown_images_figures_that_need_both_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = made_run(tmp_path / "run", ["cat", "dog"] * 20)
    code, out, err = told(capsys, uri, "--json")
    facts: dict[str, Any] = json.loads(out)
    assert code == 0
    assert "no labelled image is unknown: figures that need both kinds are left out" in err
    assert {one[name] for one in facts["scores"].values() for name in ("auroc", "fpr95", "oscr", "macro_f1")} == {None}
    assert (facts["unknown_found"], facts["recommendation"], facts["found_by_class"]) == (None, None, [])
    assert {one["name"] for one in facts["false_alarms_by_class"]} == {"cat", "dog"}
    code, out, err = told(capsys, uri, "--out", tmp_path / "curves")
    assert (code, out) == (4, "")
    assert err == f"gradosr: {uri}: no labelled image is unknown, and a curve needs known and unknown ones"
    assert not (tmp_path / "curves").exists()
