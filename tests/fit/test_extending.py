"""From a labelled new class to a bundle that knows it."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from gradosr.jobs.cli import run
from hostile import tar
from safetensors.torch import load_file, save_file
from tiny import ARCH, CLASSES, TRANSFORM, labelled_tar, local_job, picture, plain, rows_of, run_here
from tiny_net import tiny
from torch.nn import functional as F

from gradosr.audit import audit
from gradosr.audit.proportions import wilson
from gradosr.audit.rows import id_of
from gradosr.bundle.bundle import load_bundle
from gradosr.classifier.build import build_classifier
from gradosr.classifier.widening import head_names, widened, wider_args
from gradosr.config import AuditSettings, ComputeSettings, FitJob, Signals
from gradosr.detectors import Observation
from gradosr.errors import ClassifierError, ConfigError
from gradosr.fit import extending
from gradosr.fit.extending import Labelled, apart
from gradosr.fit.fitting import fit
from gradosr.fit.new_class import Pictures, _fitted, _weights, fit_new_row
from gradosr.labels.folder import rows_of as labels_of
from gradosr.labels.folder import write_labels
from gradosr.run.console import Notes
from gradosr.scoring.compute import choose_compute
from gradosr.scoring.observer import Observer
from gradosr.store import Store

WHEN = np.datetime64("2026-11-28T00:00:00", "us").item()
TRUST = ("--set", f"trust=[{ARCH}]")


def opinions(folder: Path, labels: dict[str, str], run_name: str = "results") -> None:
    said = [{"key": key, "label": label, "who": "ann", "when": WHEN, "source": "csv"} for key, label in labels.items()]
    write_labels(Store(), f"{folder}/{run_name}", labels_of(said))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, and the scores of 80 images: plain ones at even places, known ones at the others."""
    folder = tmp_path_factory.mktemp("extending")
    store = Store()
    store.write(f"{folder}/known/0.tar", labelled_tar(0, 150))
    torch.manual_seed(0)
    save_file(tiny(3).state_dict(), folder / "weights.safetensors")
    classifier = {"arch": ARCH, "args": {"num_classes": 3}, "classes": CLASSES, "transform": TRANSFORM}
    document = {
        "classifier": classifier | {"weights": f"{folder}/weights.safetensors"},
        "input": {"kind": "tar", "uri": f"{folder}/known/"},
        "held_out": 0.8,
        "detector": {"kind": "one_class"},
        "bundle": f"{folder}/bundle",
        "device": "cpu",
    }
    fit(FitJob.model_validate(document), Notes()).save(store, f"{folder}/bundle")
    members = [(f"{i:03}.png", plain(100 + i) if i % 2 == 0 else picture(1000 + i)) for i in range(80)]
    store.write(f"{folder}/archive/0.tar", tar(members))
    run_here(local_job(folder, signals="all"))
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """The same without labels."""
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


def plain_keys(folder: Path) -> list[str]:
    (part,) = (folder / "results/parts").glob("*.parquet")
    return [key for key in pq.read_table(part)["key"].to_pylist() if int(key[-7:-4]) % 2 == 0]


def extend(folder: Path, *more: str, name: str = "blank") -> int:
    paths = ("--run", f"{folder}/results", "--class", name, "--out", f"{folder}/extended")
    return run(["extend", f"{folder}/bundle", *paths, *TRUST, *more])


def test_a_bundle_knows_a_class_more_and_its_old_rows_are_as_they_were(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labelled = plain_keys(folder)[::2] + plain_keys(folder)[1::8]
    opinions(folder, dict.fromkeys(labelled, "blank"))
    assert extend(folder, "--json", "--force") == 0
    facts = json.loads(capsys.readouterr().out)
    accuracy = facts["accuracy"]
    assert accuracy["before"] >= accuracy["after"] >= accuracy["before"] - 0.05
    assert set(accuracy["by_class"]) == set(CLASSES)
    assert (facts["labels"], facts["found_by_cross_validation"] > 0.8) == (len(labelled), True)
    assert (facts["fitted_to"], facts["held_out"]) == (len(labelled), None)
    old, new = (load_file(folder / name / "classifier.safetensors") for name in ("bundle", "extended"))
    assert all(
        torch.equal(new[name][: len(tensor)] if tensor.dim() else new[name], tensor) for name, tensor in old.items()
    )
    assert len(new["head.weight"]) == len(new["head.bias"]) == 4
    bundle = load_bundle(Store(), f"{folder}/extended", (ARCH,))
    assert bundle.manifest.classes == (*CLASSES, "blank")
    assert "lineage" not in bundle.manifest.provenance  # signals of older runs are not this classifier's
    assert run(["fit", f"{folder}/extended/fit.json", "--set", f"bundle={folder}/again"]) == 0  # it says what was done


def test_scores_of_the_new_bundle_leave_its_labelled_images_out_of_rates(folder: Path) -> None:
    labelled = plain_keys(folder)[:30]
    opinions(folder, dict.fromkeys(labelled, "blank"))
    assert extend(folder, "--force") == 0
    job = local_job(folder, bundle=f"{folder}/extended", output=f"{folder}/second")
    run_here(job)
    (part,) = (folder / "second/parts").glob("*.parquet")
    rows = {row["key"]: row["predicted_class"] for row in pq.read_table(part).to_pylist()}
    fresh = [rows[key] for key in plain_keys(folder)[30:]]
    assert fresh.count("blank") >= 8  # of 10
    facts = audit(Store(), f"{folder}/second", AuditSettings())
    assert facts["images"] == 50
    assert facts["notes"][0].startswith("30 images that the bundle has learned from")


def strict(out: str) -> Any:
    return json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_of_many_labelled_images_some_are_held_out_and_tell_how_many_the_new_class_names(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plains = plain_keys(folder)
    opinions(folder, dict.fromkeys(plains, "blank"))
    assert extend(folder, "--force", "--json") == 0
    facts = strict(capsys.readouterr().out)
    assert (facts["labels"], facts["fitted_to"], facts["held_out"]["images"]) == (40, 30, 10)
    learned = json.loads((folder / "extended/bundle.json").read_text())["provenance"]["extended"]["ids"]
    held_out = [key for key in plains if id_of(key) not in learned]
    assert (len(learned), len(held_out)) == (30, 10)

    job = local_job(folder, bundle=f"{folder}/extended", output=f"{folder}/second", signals="all")
    run_here(job)
    found = rows_of(folder / "second", ("key", "predicted_class"))
    named = [found[key] == ("blank",) for key in held_out]
    assert (facts["held_out"]["named"], facts["held_out"]["estimate"]) == (sum(named), sum(named) / 10)
    assert (facts["held_out"]["low"], facts["held_out"]["high"]) == wilson(sum(named), 10)
    assert audit(Store(), f"{folder}/second", AuditSettings())["images"] == 50  # rates leave out what fitted the row

    opinions(folder, {key: "noise" for key in found if key not in plains}, "second")
    paths = ("--run", f"{folder}/second", "--class", "noise", "--out", f"{folder}/third")
    assert run(["extend", f"{folder}/extended", *paths, *TRUST, "--force", "--json"]) == 0
    read = capsys.readouterr()
    assert strict(read.out)["accuracy"]["by_class"]["blank"] == {"before": None, "after": None}
    assert "  blank: no calibration image" in read.err


def test_an_image_of_two_runs_is_held_out_of_both_or_of_none() -> None:
    ids = [f"{place:016x}" for place in (*range(40), *range(40))]
    seen = Observation(torch.zeros(80, 0), torch.zeros(80, 3))
    held_out = apart(Labelled(ids, seen, torch.ones(80, dtype=torch.bool)))
    assert held_out.tolist() == [place < 10 for place in (*range(40), *range(40))]
    assert not apart(Labelled(ids[:39], seen, torch.ones(39, dtype=torch.bool))).any()  # too few would be left


def test_a_loss_of_the_known_classes_is_refused_unless_forced(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opinions(folder, dict.fromkeys(plain_keys(folder), "blank"))
    monkeypatch.setattr(extending, "MOST_LOST", -1.0)  # no extension keeps to that
    assert extend(folder) == 4
    err = capsys.readouterr().err
    assert "blank: the known classes would lose" in err
    assert "--force accept that" in err
    assert not (folder / "extended/bundle.json").exists()
    assert extend(folder, "--force") == 0


BAD: dict[str, tuple[dict[str, Any], int, str]] = {
    "known": ({"name": "cat"}, 2, "knows cat, dog, ship; name a class of its labels"),
    "nobody": ({"name": "blnk"}, 4, "0 images labelled blnk with stored signals (labels name blank); a class needs 20"),
    "few": ({"labels": 19}, 4, "19 images labelled blank with stored signals; a class needs 20"),
    "none": ({"labels": 0}, 4, "0 images labelled blank with stored signals (labels name no new class)"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes, code, message = BAD[case]
    opinions(folder, dict.fromkeys(plain_keys(folder)[: changes.get("labels", 30)], "blank"))
    assert extend(folder, name=changes.get("name", "blank")) == code
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_an_archive_with_other_held_out_images_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opinions(folder, dict.fromkeys(plain_keys(folder), "blank"))
    document = json.loads((folder / "bundle/bundle.json").read_text())
    (Path(document["provenance"]["input"]["uri"]) / "1.tar").write_bytes(labelled_tar(500, 40))
    try:
        assert extend(folder) == 4
    finally:
        (Path(document["provenance"]["input"]["uri"]) / "1.tar").unlink()
    assert "it can be extended with those images alone" in capsys.readouterr().err.splitlines()[-1]


# --- the new row


def pictures(seed: int = 0, new: int = 30, known: int = 200) -> Pictures:
    draws = np.random.default_rng(seed)
    labels = np.append(draws.integers(0, 3, known), np.full(new, -1))
    centres = draws.normal(size=(4, 6))
    features = centres[np.where(labels < 0, 3, labels)] + draws.normal(size=(known + new, 6)) * 0.8
    logits = 2 * features @ centres[:3].T
    return Pictures(features, logits, labels < 0, labels)


def test_the_row_is_that_of_the_softmax_cross_entropy() -> None:
    seen, penalty = pictures(), 0.1
    weight_F, bias = _fitted(seen, penalty)
    features, logits = torch.from_numpy(seen.features_BF), torch.from_numpy(seen.logits_BK)
    targets = torch.from_numpy(np.where(seen.new_B, 3, seen.known_B))
    weights = torch.from_numpy(_weights(seen))
    spread = features.std(0, correction=0)
    row = torch.zeros(7, dtype=torch.float64, requires_grad=True)
    descent = torch.optim.LBFGS([row], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        descent.zero_grad()
        both = torch.column_stack([logits, features @ row[:6] + row[6]])
        ridge = penalty * weights[targets == 3].sum() / 2 * (row[:6] * spread).square().sum()
        loss = (weights * F.cross_entropy(both, targets, reduction="none")).sum() + ridge
        loss.backward()
        return loss

    descent.step(closure)
    assert np.allclose(np.append(weight_F, bias), row.detach().numpy(), atol=2e-3)


def test_few_known_images_are_taken_and_new_ones_are_found() -> None:
    row = fit_new_row(pictures())
    fresh = pictures(seed=0, new=3000, known=20_000)
    taken = row.takes(fresh)
    right = fresh.logits_BK.argmax(1) == fresh.known_B
    assert (taken & right)[~fresh.new_B].mean() < 0.02
    assert taken[fresh.new_B].mean() > 0.3


# --- the wider classifier


@pytest.mark.parametrize("arch", [ARCH, "torchvision:googlenet", "tiny_net:keyed"])
def test_a_wider_classifier_gives_the_old_logits(arch: str) -> None:
    args = {"num_classes": 3} | ({"init_weights": False, "aux_logits": True} if "googlenet" in arch else {})
    logits = "logits" if arch == "tiny_net:keyed" else None
    classifier = build_classifier(arch, args, 3, (arch,), logits)
    compute = choose_compute(ComputeSettings(device="cpu"))
    weight, bias = head_names(classifier, Observer(classifier, TRANSFORM, Signals(), compute).check(3).head)
    own = classifier.state_dict()
    rows = {weight: torch.full_like(own[weight][0], 0.5), bias: torch.tensor(0.25)}
    wider = widened(classifier, rows, arch, wider_args(arch, args, 4), 4, (arch,), logits)
    images = torch.randn(2, 3, 64, 64) if "torchvision" in arch else torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(wider(images)[:, :3], classifier(images), atol=1e-5)
        assert wider(images).shape == (2, 4)


def test_a_classifier_without_room_for_a_row_is_one_line() -> None:
    compute = choose_compute(ComputeSettings(device="cpu"))
    with pytest.raises(ConfigError, match="its args have no num_classes"):
        wider_args("own:factory", {}, 4)
    with pytest.raises(ClassifierError, match="this classifier has none"):
        head_names(tiny(3), None)
    bare = tiny(3)
    bare.head = torch.nn.Linear(64, 3, bias=False)
    bare.eval()
    with pytest.raises(ClassifierError, match="layer has no bias"):
        head_names(bare, Observer(bare, TRANSFORM, Signals(), compute).check(3).head)


# --- fine-tuning


def test_a_recipe_starts_from_weights(folder: Path) -> None:
    document = json.loads((folder / "bundle/bundle.json").read_text())
    start = load_file(folder / "bundle/classifier.safetensors")

    def trained(learning_rate: float, **changes: object) -> dict[str, torch.Tensor]:
        classifier = {"arch": ARCH, "args": {"num_classes": 3}, "classes": CLASSES, "transform": TRANSFORM}
        job = {
            "classifier": classifier | {"weights": f"{folder}/bundle/classifier.safetensors"},
            "train": {"epochs": 1, "batch_size": 10, "learning_rate": learning_rate},
            "input": document["provenance"]["input"],
            "held_out": 0.6,
            "detector": {"kind": "max_logit"},
            "bundle": f"{folder}/tuned",
            "device": "cpu",
        }
        return fit(FitJob.model_validate(job | changes), Notes()).classifier.state_dict()

    little, much = trained(1e-6), trained(0.1)
    assert torch.allclose(little["head.weight"], start["head.weight"], atol=1e-4)
    assert not torch.equal(little["head.weight"], start["head.weight"])
    assert (much["head.weight"] - start["head.weight"]).abs().max() > 1e-3
    of_classifier_1 = trained(0.1, detector={"kind": "transfer", "epochs": 1, "pseudo_unknown": 1})
    assert torch.equal(of_classifier_1["head.weight"], start["head.weight"])
