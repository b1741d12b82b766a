"""Known examples: what a bundle keeps of its held-out images, and that it keeps no more than it was told."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import ARCH, CLASSES, TRANSFORM, labelled_tar, local_job, run_here

from gradosr.audit import audit
from gradosr.bundle.bundle import load_detector
from gradosr.bundle.examples import KnownExamples, read_examples
from gradosr.bundle.manifest import read_manifest
from gradosr.config import AuditSettings, FitJob
from gradosr.errors import BundleError
from gradosr.fit import examples
from gradosr.fit.fitting import fit
from gradosr.run.console import Notes
from gradosr.store import Store


def fitted(folder: Path, **changes: object) -> KnownExamples | None:
    Store().write(f"{folder}/known.tar", labelled_tar(0, 90))
    document = {
        "classifier": {"arch": ARCH, "args": {"num_classes": 3}, "classes": CLASSES, "transform": TRANSFORM},
        "train": {"epochs": 2, "batch_size": 8},
        "input": {"kind": "tar", "uri": f"{folder}/known.tar"},
        "held_out": 0.5,
        "detector": {"kind": "one_class"},
        "bundle": f"{folder}/bundle",
        "device": "cpu",
        **changes,
    }
    fit(FitJob.model_validate(document), Notes()).save(Store(), f"{folder}/bundle")
    return read_examples(Store(), f"{folder}/bundle", read_manifest(Store(), f"{folder}/bundle")[0])


def test_examples_are_of_every_class_alike_and_show_the_images_of_their_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examples, "PICTURES", 12)
    monkeypatch.setattr(examples, "SIDE", 8)
    found = fitted(tmp_path)
    assert found is not None
    assert [found.classes.count(name) for name in CLASSES] == [4, 4, 4]
    assert len(set(found.keys)) == 12
    assert found.features_NF.shape[0] == 12
    assert np.isfinite(found.features_NF).all()
    for key, name, jpeg in zip(found.keys, found.classes, found.pictures, strict=True):
        seed = int(Path(key.split("#")[1]).stem)
        assert name == CLASSES[seed % 3]
        assert jpeg is not None
        picture = Image.open(io.BytesIO(jpeg))
        original = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        assert (picture.format, picture.size) == ("JPEG", (8, 8))
        assert abs(np.asarray(picture, float).mean() - original.mean()) < 5


@pytest.mark.parametrize("choice", ["keys", "none"])
def test_a_private_archive_leaves_no_picture_in_the_bundle(tmp_path: Path, choice: str) -> None:
    found = fitted(tmp_path, known_examples=choice)
    if choice == "none":
        assert found is None
        assert not (tmp_path / "bundle/known.parquet").exists()
    else:
        assert found is not None
        assert set(found.pictures) == {None}
        assert b"\xff\xd8\xff" not in (tmp_path / "bundle/known.parquet").read_bytes()


def test_a_detector_that_learns_keeps_the_examples_of_its_parent(tmp_path: Path) -> None:
    found = fitted(tmp_path)
    load_detector(Store(), f"{tmp_path}/bundle").save_beside(Store(), f"{tmp_path}/bundle", f"{tmp_path}/beside")
    manifest, _ = read_manifest(Store(), f"{tmp_path}/beside")
    beside = read_examples(Store(), f"{tmp_path}/beside", manifest)
    assert found is not None
    assert beside is not None
    assert beside.keys == found.keys
    assert np.array_equal(beside.features_NF, found.features_NF)


def test_an_audit_shows_them_beside_the_images_of_a_run(tmp_path: Path) -> None:
    found = fitted(tmp_path, false_alarm_rate=0.9)
    Store().write(f"{tmp_path}/archive/0.tar", labelled_tar(1000, 60))
    run_here(local_job(tmp_path, features="unknown"))
    facts = audit(Store(), f"{tmp_path}/results", AuditSettings(), out=tmp_path / "out")
    assert facts["groups"]["method"] == {"space": "features", "known": True}
    assert found is not None
    beside = {(one["key"], one["class"]) for one in facts["known_images"].values()}
    assert beside <= set(zip(found.keys, found.classes, strict=True))
    assert {row["id"] for row in facts["highest"]} == set(facts["nearest_known"])
    assert {len(ids) for ids in facts["nearest_known"].values()} == {4}
    assert set(facts["map"]["ids"]) >= set(facts["nearest_known"])


def test_damaged_examples_are_one_line(tmp_path: Path) -> None:
    fitted(tmp_path)
    manifest, _ = read_manifest(Store(), f"{tmp_path}/bundle")
    (tmp_path / "bundle/known.parquet").write_bytes(b"nothing")
    with pytest.raises(BundleError, match=r"known\.parquet: not the file that bundle\.json names"):
        read_examples(Store(), f"{tmp_path}/bundle", manifest)
