"""The compute core on a machine that has torch and a few small packages: no Ray, no boto3, no terminal's Rich.

Such is many a GPU machine, on which the repository is but a folder on the path.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent

WITHOUT = """
import importlib.metadata
import sys

MISSING = {"ray", "boto3", "botocore", "rich", "timm", "transformers", "matplotlib"}

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in MISSING:
            raise ImportError(f"{name} is refused")

def version(name, of=importlib.metadata.version):
    if name in {*MISSING, "gradosr"}:
        raise importlib.metadata.PackageNotFoundError(name)
    return of(name)

sys.meta_path.insert(0, Refuse())
importlib.metadata.version = version
for name in MISSING:
    try:
        __import__(name)
    except ImportError:
        continue
    sys.exit(f"{name} could be imported")
"""

SCORE = """
import torch
from test_bundle import made, pixels
from gradosr.bundle.bundle import load_bundle
from gradosr.config import ComputeSettings
from gradosr.scoring.scorer import Scorer
from gradosr.store import Store
from gradosr.versions import software

made().save(Store(), f"{sys.argv[1]}/bundle")
scores = Scorer(load_bundle(Store(), f"{sys.argv[1]}/bundle"), ComputeSettings(device="cpu")).score(pixels(4))
print(scores.finite.all(), len(scores.p_value), sorted(software()))
"""

FIT = """
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tiny import ARCH, CLASSES, TRANSFORM, picture
from gradosr.config import FitJob
from gradosr.fit.fitting import fit
from gradosr.store import Store
from gradosr.run.console import Notes

images = {"image": [picture(i) for i in range(90)], "label": [CLASSES[i % 3] for i in range(90)]}
pq.write_table(pa.table(images), f"{sys.argv[1]}/known.parquet")
classifier = {"arch": ARCH, "args": {"num_classes": 3}, "classes": list(CLASSES)}
job = {
    "classifier": {**classifier, "transform": TRANSFORM.model_dump(mode="json")},
    "train": {"epochs": 1, "batch_size": 8, "rand_augment": 1},
    "input": {"kind": "parquet", "uri": f"{sys.argv[1]}/known.parquet", "label_column": "label"},
    "held_out": 0.7,
    "detector": {"kind": "one_class"},
    "bundle": f"{sys.argv[1]}/bundle",
    "device": "cpu",
}
with Notes() as notes:
    bundle = fit(FitJob.model_validate(job), notes)
bundle.save(Store(), job["bundle"])
print(len(bundle.calibrations["float32"].scores) > 20, sorted(bundle.manifest.provenance["software"]))
"""

SOFTWARE = "['pillow', 'pyarrow', 'python', 'torch', 'torchvision']"


def run(code: str, folder: Path) -> tuple[int, str, str]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]]),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT + code, str(folder)],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_a_bundle_is_saved_loaded_and_scores_a_batch(tmp_path: Path) -> None:
    assert run(SCORE, tmp_path) == (0, f"True 4 {SOFTWARE}\n", "")


def test_a_detector_is_fitted_from_a_local_file(tmp_path: Path) -> None:
    code, out, err = run(FIT, tmp_path)
    assert (code, out) == (0, f"True {SOFTWARE}\n"), err
    assert "closed-set accuracy on" in err


def test_every_module_of_the_core_is_imported(tmp_path: Path) -> None:
    modules = (
        *("gradients", "representations", "detectors", "bundle.bundle", "archive.loading", "classifier.training"),
        *("scoring.scorer", "scoring.columns", "fit.fitting", "lab.conformance", "lab.evaluation.protocol"),
        *("lab.evaluation.tables", "lab.benchmark.engine", "lab.benchmark.memory", "lab.benchmark.tables"),
    )
    code = f"import importlib\nfor name in {modules}: importlib.import_module(f'gradosr.{{name}}')"
    assert run(code, tmp_path) == (0, "", "")


def test_commands_run_from_the_tree(tmp_path: Path) -> None:
    """`python -m jobs.cli` works where nothing is installed as gradosr.jobs."""
    code = """
from jobs.cli import run
for command in (["evaluate"], ["bench", "engine"], ["fit"]):
    assert run([*command, "--help"]) == 0, command
sys.exit(run(["bench", "engine", "--size", "8", "--batch", "2", "--runs", "1", "--explain", "--device", "cpu"]))
"""
    code, out, err = run(code, tmp_path)
    assert (code, err) == (0, "")
    assert "conv1.weight" in out
