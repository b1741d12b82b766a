"""Fit jobs with `calibration: per_class`, and all that becomes of their bundles."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from gradosr.jobs.cli import run
from hostile import tar
from safetensors.torch import save_file
from tiny import ARCH, CLASSES, CPU, TRANSFORM, labelled_tar, local_job, picture, plain, run_here, write_archive
from tiny_net import Tiny, tiny

from gradosr.audit import audit
from gradosr.bundle.bundle import Bundle, load_bundle, load_detector, read_held_out
from gradosr.config import AuditSettings, ComputeSettings, FitJob, ResultsInput, Signals
from gradosr.errors import InputError
from gradosr.explanation import Explainer
from gradosr.fit.fitting import fit
from gradosr.fit.inspection import check_bundle, check_fit, report
from gradosr.labels.folder import rows_of, write_labels
from gradosr.run.console import Notes
from gradosr.scoring.compute import choose_compute
from gradosr.scoring.observer import Observer
from gradosr.scoring.scorer import Scorer
from gradosr.store import Store

WHEN = np.datetime64("2026-11-28T00:00:00", "us").item()
RATE = 0.1
NEEDED = 9


def undecided() -> Tiny:
    """A network that takes random pictures for each of its classes, whatever they are labelled."""
    torch.manual_seed(0)
    net = tiny(3).eval()
    observer = Observer(net, TRANSFORM, Signals(), choose_compute(CPU))
    pixels = torch.randint(256, (200, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        logits_BK = observer(pixels).observation.logits_BK
        deviation_K = logits_BK.std(0)
        net.head.weight /= deviation_K[:, None]
        net.head.bias.copy_((net.head.bias - logits_BK.mean(0)) / deviation_K)
    return net


def job(folder: Path, net: Tiny | None = None, images: int = 200, **changes: Any) -> FitJob:
    Store().write(f"{folder}/known/0.tar", labelled_tar(0, images))
    weights = {name: tensor.contiguous() for name, tensor in (net or undecided()).state_dict().items()}
    save_file(weights, folder / "weights.safetensors")
    classifier = {"arch": ARCH, "args": {"num_classes": 3}, "classes": CLASSES, "transform": TRANSFORM}
    document = {
        "classifier": classifier | {"weights": f"{folder}/weights.safetensors"},
        "input": {"kind": "tar", "uri": f"{folder}/known/"},
        "held_out": 1.0,
        "detector": {"kind": "one_class"},
        "calibration": "per_class",
        "false_alarm_rate": RATE,
        "bundle": f"{folder}/bundle",
        "device": "cpu",
    }
    return FitJob.model_validate(document | changes)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle calibrated per class in two precisions, and a run with all signals."""
    folder = tmp_path_factory.mktemp("per_class")
    both = job(folder, precisions=["bfloat16"])
    fit(both, Notes(), force=True).save(Store(), both.bundle)
    members = [(f"{i:03}.png", plain(100 + i) if i % 2 == 0 else picture(1000 + i)) for i in range(80)]
    Store().write(f"{folder}/archive/0.tar", tar(members))
    run_here(local_job(folder, signals="all"))
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """The same without labels."""
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


def by_definition(bundle: Bundle, held_out: Any, scores: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """p-values among the held-out images that are taken for the same class."""
    known, taken_for = bundle.detector.score(held_out).numpy(), held_out.logits_BK.argmax(1).numpy()
    own = [known[taken_for == k] for k in predicted]
    return np.array([(1 + (one >= score).sum()) / (1 + len(one)) for one, score in zip(own, scores, strict=True)])


def test_images_are_compared_with_those_of_their_predicted_class(tmp_path: Path) -> None:
    bundle = fit(job(tmp_path), Notes(), force=True)
    held_out = bundle.held_out.calibration["float32"]
    assert sorted(bundle.calibrations["float32"].by_class) == [0, 1, 2]
    images = torch.randint(256, (60, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(9))
    found = Scorer(bundle, CPU).score(images)
    assert len(set(found.predicted_index.tolist())) == 3
    expected = by_definition(bundle, held_out, found.unknown_score, found.predicted_index)
    np.testing.assert_allclose(found.p_value, expected, rtol=1e-6)
    assert found.is_unknown.tolist() == (found.p_value <= RATE).tolist()
    pooled = replace(bundle, calibrations={"float32": replace(bundle.calibrations["float32"], predicted=None)})
    assert (Scorer(pooled, CPU).score(images).p_value != found.p_value).any()


def test_a_run_and_its_audit_are_of_that_calibration(made: Path) -> None:
    bundle, part = load_bundle(Store(), f"{made}/bundle", (ARCH,)), pq.read_table(made / "results" / "parts")
    scores, predicted = part["unknown_score"].to_numpy(), part["predicted_index"].to_numpy()
    p_values = bundle.calibrations["float32"].p_values(scores, predicted)
    np.testing.assert_array_equal(part["p_value"].to_numpy(), p_values)
    assert part["is_unknown"].to_pylist() == (p_values <= RATE).tolist()
    recorded = json.loads((made / "results" / "run.json").read_text())["calibration"]
    sizes = {CLASSES[k]: len(own) for k, own in bundle.calibrations["float32"].by_class.items()}
    assert recorded["by_class"] == sizes
    found = audit(Store(), f"{made}/results", AuditSettings(fdr=0.5))
    assert found["calibration"] == {"images": sum(sizes.values()), "kind": "per_class"}
    assert "are not of the recorded calibration" not in str(found["flags"]["reason"])
    assert [row["p_value"] for row in found["highest"]] == sorted(row["p_value"] for row in found["highest"])


def test_each_precision_is_calibrated_per_class(made: Path) -> None:
    bundle = load_bundle(Store(), f"{made}/bundle", (ARCH,))
    held_out = read_held_out(Store(), f"{made}/bundle").calibration["bfloat16"]
    half = bundle.calibrations["bfloat16"]
    assert {k: len(own) for k, own in half.by_class.items()} == dict(
        enumerate(np.bincount(held_out.logits_BK.argmax(1).numpy()).tolist())
    )
    images = torch.randint(256, (20, 3, 16, 16), dtype=torch.uint8)
    found = Scorer(bundle, ComputeSettings(device="cpu", precision="bfloat16")).score(images)
    np.testing.assert_array_equal(found.p_value, half.p_values(found.unknown_score, found.predicted_index))


def test_a_run_scored_again_has_the_p_values_of_its_predicted_classes(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "bundle", tmp_path / "bundle")
    again = local_job(
        tmp_path, input=ResultsInput(kind="results", uri=f"{made}/results").model_dump(), output=f"{tmp_path}/again"
    )
    run_here(again)
    before, after = (pq.read_table(path / "parts").sort_by("key") for path in (made / "results", tmp_path / "again"))
    calibration = load_detector(Store(), f"{made}/bundle").calibrations["float32"]
    expected = calibration.p_values(after["unknown_score"].to_numpy(), before["predicted_index"].to_numpy())
    np.testing.assert_array_equal(after["p_value"].to_numpy(), expected)


def test_what_has_learned_or_was_extended_is_calibrated_as_its_parent(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = pq.read_table(folder / "results" / "parts")["key"].to_pylist()
    said = {key: "blank" if int(key[-7:-4]) % 2 == 0 else "known" for key in keys[:70]}
    facts = {"who": "ann", "when": WHEN, "source": "csv"}
    write_labels(Store(), f"{folder}/results", rows_of([{"key": k, "label": v, **facts} for k, v in said.items()]))
    parent = load_detector(Store(), f"{folder}/bundle")
    paths = [f"{folder}/bundle", "--run", f"{folder}/results", "--json"]
    assert run(["learn", *paths, "--out", f"{folder}/learned"]) == 0
    told = json.loads(capsys.readouterr().out)
    child = load_detector(Store(), f"{folder}/learned")
    for precision, calibration in parent.calibrations.items():
        own = child.calibrations[precision].by_class
        assert {k: len(scores) for k, scores in own.items()} == {k: len(v) for k, v in calibration.by_class.items()}
    held_out = read_held_out(Store(), f"{folder}/learned").calibration["float32"]
    scores, taken_for = child.detector.score(held_out).numpy(), held_out.logits_BK.argmax(1).numpy()
    for k, own in child.calibrations["float32"].by_class.items():
        np.testing.assert_allclose(own, np.sort(scores[taken_for == k]), rtol=1e-6)
    assert told["threshold"] == child.calibrations["float32"].thresholds(RATE, CLASSES)
    out = f"{folder}/extended"
    assert run(["extend", *paths, "--class", "blank", "--out", out, "--force", "--set", f"trust=[{ARCH}]"]) == 0
    extended = load_detector(Store(), out)
    assert {one.kind for one in extended.calibrations.values()} == {"per_class"}
    assert set(extended.manifest.calibration.by_class) <= {*CLASSES, "blank"}


def test_too_few_labelled_images_of_a_class_are_told_before_the_classifier_sees_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = job(tmp_path, images=60, train={"epochs": 1}, held_out=0.5)
    monkeypatch.setattr("gradosr.fit.fitting.train", lambda *_: pytest.fail("trained for nothing"))
    with pytest.raises(InputError) as refused:
        fit(asked, Notes())
    assert str(refused.value).startswith("calibration per class: too few calibration images by label: cat ")
    assert f"a false-alarm rate of 0.1 needs at least {NEEDED} of each. Hold out more images" in str(refused.value)


def test_too_few_images_taken_for_a_class_are_told(tmp_path: Path) -> None:
    net = undecided()
    pictures = [np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8) for seed in range(200)]
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    with torch.no_grad():
        logits_BK = Observer(net, TRANSFORM, Signals(), choose_compute(CPU))(pixels).observation.logits_BK
        margin_B = logits_BK[:, 2] - logits_BK[:, :2].amax(1)
        net.head.bias[2] -= margin_B.sort().values[-11]  # ten of the 200 are still taken for the last class
    with pytest.raises(InputError, match=r"too few calibration images by predicted class: ship \d; a false-alarm rate"):
        fit(job(tmp_path, net), Notes(), force=True)


def test_a_class_that_is_never_predicted_is_told_and_compared_with_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = undecided()
    with torch.no_grad():
        net.head.bias[2] -= 100
    with Notes() as notes:
        bundle = fit(job(tmp_path, net), notes, force=True)
    assert "known images are (almost) never taken for ship; images that are get p-values from the" in (
        capsys.readouterr().err
    )
    calibration = bundle.calibrations["float32"]
    assert sorted(calibration.by_class) == [0, 1]
    scores = calibration.scores
    assert calibration.p_values(scores, np.full(len(scores), 2)).max() == 1
    bundle.save(Store(), f"{tmp_path}/bundle")
    write_archive(Store(), f"{tmp_path}/archive", shards=1)
    run_here(local_job(tmp_path))
    assert audit(Store(), f"{tmp_path}/results", AuditSettings())["images"] == 6


def test_a_check_and_an_explanation_tell_of_it(made: Path) -> None:
    asked = local_job(made, signals="all")
    found = check_bundle(asked)
    assert found.calibration == "per_class"
    assert "calibration per predicted class\n" in report(found)
    assert check_fit(job(made), Notes()).calibration == "per_class"
    explainer = Explainer.load(Store(), f"{made}/bundle", (ARCH,), CPU)
    images = torch.randint(256, (5, 3, 16, 16), dtype=torch.uint8)
    scores = Scorer(load_bundle(Store(), f"{made}/bundle", (ARCH,)), CPU).score(images)
    np.testing.assert_allclose([one.p_value for one in explainer(images)], scores.p_value, atol=0.02)
