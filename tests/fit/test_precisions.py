"""Calibration in the precisions that score jobs may use."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from tiny import ARCH, CLASSES, CPU, TRANSFORM, labelled_tar, local_job, run_here, write_archive
from tiny_net import tiny

from gradosr.bundle.bundle import Bundle, load_bundle
from gradosr.config import ComputeSettings, FitJob
from gradosr.errors import ConfigError
from gradosr.fit.fitting import fit
from gradosr.run.console import Notes
from gradosr.run.plan import prepare
from gradosr.scoring.scorer import Scorer
from gradosr.store import Store

HALF = ComputeSettings(device="cpu", precision="bfloat16")


def job(folder: Path, *precisions: str) -> FitJob:
    Store().write(f"{folder}/known/0.tar", labelled_tar(0, 80))
    torch.manual_seed(0)
    save_file(tiny(3).state_dict(), folder / "weights.safetensors")
    classifier = {"arch": ARCH, "args": {"num_classes": 3}, "classes": CLASSES, "transform": TRANSFORM}
    document = {
        "classifier": classifier | {"weights": f"{folder}/weights.safetensors"},
        "input": {"kind": "tar", "uri": f"{folder}/known/"},
        "held_out": 0.8,
        "detector": {"kind": "one_class"},
        "precisions": precisions,
        "bundle": f"{folder}/bundle",
        "device": "cpu",
    }
    return FitJob.model_validate(document)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("precisions")


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    both = job(folder, "bfloat16")
    fit(both, Notes()).save(Store(), both.bundle)
    return load_bundle(Store(), both.bundle, (ARCH,))


def test_each_precision_has_its_own_calibration(bundle: Bundle) -> None:
    single, half = bundle.calibrations["float32"].scores, bundle.calibrations["bfloat16"].scores
    assert len(single) == len(half)
    assert np.abs(half - single).max() < single.std() / 2
    assert not np.array_equal(single, half)


def test_p_values_are_those_of_the_precision_asked_for(bundle: Bundle) -> None:
    images = torch.randint(256, (8, 3, 16, 16), dtype=torch.uint8)
    scores = Scorer(bundle, HALF).score(images)
    np.testing.assert_array_equal(scores.p_value, bundle.calibrations["bfloat16"].p_values(scores.unknown_score))


def test_a_run_records_the_calibration_of_its_precision(bundle: Bundle, folder: Path) -> None:
    write_archive(Store(), f"{folder}/archive", shards=1)
    run_here(local_job(folder, precision="bfloat16"))
    recorded = json.loads((folder / "results" / "run.json").read_text())["calibration"]
    assert recorded == bundle.manifest.calibrations["bfloat16"].model_dump(mode="json")
    part = pq.read_table(folder / "results" / "parts")
    expected = bundle.calibrations["bfloat16"].p_values(part["unknown_score"].to_numpy())
    np.testing.assert_array_equal(part["p_value"].to_numpy(), expected)


def test_a_precision_without_calibration_is_refused_before_the_archive_is_listed(tmp_path: Path) -> None:
    one = job(tmp_path)
    fit(one, Notes()).save(Store(), one.bundle)
    assert "calibrations" not in json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    with pytest.raises(
        ConfigError, match="precision: bfloat16, but the bundle's p-values hold only in float32; fit it"
    ):
        prepare(local_job(tmp_path, precision="bfloat16"))
    with pytest.raises(ConfigError, match="fit it with"):
        Scorer(load_bundle(Store(), one.bundle, (ARCH,)), HALF)
    Scorer(load_bundle(Store(), one.bundle, (ARCH,)), CPU)


def test_a_precision_that_this_machine_lacks_is_refused_before_the_images_are_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tf32, which only CUDA devices have"):
        fit(job(tmp_path, "tf32"), Notes())
