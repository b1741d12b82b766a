"""A detector is added by one file and one line of a table: shown on a copy of the library that has one more."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import ARCH, CLASSES, TRANSFORM, labelled_tar
from tiny_net import tiny

from gradosr.store import Store

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent

BASELINE = '''
"""Distance of the features to their mean."""

from dataclasses import dataclass

from torch import Tensor

from gradosr.detectors.baselines.baseline import Baseline
from gradosr.detectors.observation import Known, Observation


@dataclass(frozen=True)
class Toy(Baseline):
    """Distance of the features to their mean."""

    mean_F: Tensor

    @classmethod
    def fit(cls, known: Known, settings: object = None) -> "Toy":
        return cls(known.observation.features().mean(0))

    def score(self, observation: Observation) -> Tensor:
        return (observation.features() - self.mean_F).norm(dim=1)
'''

CONFIGURED = '''
"""A power of the sum of gradient norms."""

import torch

from gradosr.representations import Standardiser


class Toy:
    """A power of the sum of gradient norms, of those that are not dead."""

    def __init__(self, kept, power):
        self._kept, self._power = kept, power

    @classmethod
    def fit(cls, known, settings):
        kept = Standardiser.fit(known.observation.log_norms_BC).kept_D
        return cls(kept, torch.tensor(settings.power))

    def score(self, observation):
        return observation.log_norms_BC[:, self._kept].logsumexp(1).exp() ** self._power

    def arrays(self):
        return {"kept": self._kept, "power": self._power}

    def dropped(self, names):
        return tuple(name for i, name in enumerate(names) if i not in self._kept.tolist())

    @classmethod
    def from_arrays(cls, arrays):
        return cls(arrays["kept"], arrays["power"])
'''

SETTINGS = '''
class ToySettings(DetectorSettings):
    """A power of the sum of gradient norms."""

    kind: Literal["toy"] = "toy"
    power: float = 0.5

    @property
    def signals(self) -> Signals:
        return Signals(objectives=("all_hot",))

'''

ADDED = {
    "baseline": ("baselines/toy.py", BASELINE, "", "BASELINES = {\n", '    "toy": Baseline("baselines.toy:Toy"),\n'),
    "with settings": (
        "toy.py",
        CONFIGURED,
        SETTINGS,
        "CONFIGURED = {\n",
        '    "toy": Configured("toy:Toy", ToySettings),\n',
    ),
}
"""Name and text of the file, settings, the table, and the line that goes there."""

FIT = """
import json, sys
from gradosr.config import FitJob
from gradosr.config.settings import load_settings
from gradosr.errors import ConfigError

document = json.loads(sys.argv[1])
job = FitJob.model_validate(document)
try:
    load_settings(FitJob, json.dumps(document | {"detector": {"kind": "toi"}}), "fit.yaml")
except ConfigError as error:
    assert "'toy'" in str(error)
assert "torch" not in sys.modules

import torch
from gradosr.bundle.bundle import load_bundle
from gradosr.fit.fitting import fit
from gradosr.run.console import Notes
from gradosr.scoring.scorer import Scorer
from gradosr.store import Store

bundle = fit(job, Notes())
bundle.save(Store(), job.bundle)
loaded = load_bundle(Store(), job.bundle, (job.classifier.arch,))
images = torch.randint(256, (5, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
first, again = (Scorer(one).score(images).unknown_score for one in (bundle, loaded))
assert len(set(first.tolist())) == 5
assert abs(first - again).max() <= 1e-4 * first.std()
print(loaded.manifest.detector, type(loaded.detector).__name__, *sorted(loaded.detector.arrays()))
"""


def copied(folder: Path, kind: str) -> Path:
    """The library with one detector more."""
    file, text, settings, table, line = ADDED[kind]
    shutil.copytree(ROOT / "gradosr", folder / "gradosr", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "gradosr" / "detectors" / file).write_text(text.lstrip())
    config = folder / "gradosr" / "config" / "detectors.py"
    before = config.read_text()
    assert before.count(f"\n{table}") == 1
    config.write_text(before.replace(f"\n{table}", f"\n{settings}\n{table}{line}"))
    return folder


def fit_document(folder: Path, detector: dict[str, object]) -> dict[str, object]:
    Store().write(f"{folder}/known/0.tar", labelled_tar(0, 90))
    torch.manual_seed(0)
    save_file(tiny(3).state_dict(), folder / "weights.safetensors")
    transform = TRANSFORM.model_dump(mode="json")
    classifier = {"arch": ARCH, "args": {"num_classes": 3}, "classes": CLASSES, "transform": transform}
    return {
        "classifier": classifier | {"weights": f"{folder}/weights.safetensors"},
        "input": {"kind": "tar", "uri": f"{folder}/known/"},
        "held_out": 0.8,
        "detector": {"kind": "toy", **detector},
        "bundle": f"{folder}/bundle",
        "device": "cpu",
    }


@pytest.mark.parametrize(
    ("kind", "detector", "arrays"),
    [("baseline", {"mirror": True}, "mean_F"), ("with settings", {"power": 0.25}, "kept power")],
)
def test_a_detector_is_one_file_and_one_line(
    kind: str, detector: dict[str, object], arrays: str, tmp_path: Path
) -> None:
    """The new kind is checked without torch, named among the valid ones, fitted, saved, loaded and scored."""
    library = copied(tmp_path / "library", kind)
    path = os.pathsep.join([str(library), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", FIT, json.dumps(fit_document(tmp_path, detector))],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, f"toy Toy {arrays}\n"), done.stderr
