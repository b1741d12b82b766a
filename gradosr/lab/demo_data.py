"""Data of the demo: scikit-learn's handwritten digits as image files, and the two job configs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

FIT = """\
# Train a classifier on six kinds of digits, then fit a one-class unknown detector to it.
classifier:
  arch: torchvision:resnet18
  classes: [{known}]
  transform: {{resize: [32, 32], mean: [0.3, 0.3, 0.3], std: [0.3, 0.3, 0.3]}}
train: {{epochs: 12, batch_size: 64, learning_rate: 0.05, crop_padding: 2}}
input: {{kind: tar, uri: s3://demo/known/}}
held_out: 0.4
detector: {{kind: one_class}}
bundle: {folder}/bundle
"""
SCORE = """\
# Score an archive that also holds four kinds of digits the classifier has never seen.
bundle: {folder}/bundle
input: {{kind: tar, uri: s3://demo/archive/}}
output: {folder}/results
"""


def write_digits(folder: Path, known: Sequence[str]) -> None:
    """Write PNG files to folder/known/CLASS for fitting, and to folder/archive/CLASS for scoring.

    Two thirds of the known digits are for fitting; all other digits go to the archive.
    """
    digits = load_digits()
    for index, (pixels, target) in enumerate(zip(digits.images, digits.target, strict=True)):
        name = str(target)
        place = folder / ("known" if name in known and index % 3 else "archive") / name
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15.9375).astype(np.uint8)).save(place / f"{index:04}.png")


def write_configs(folder: Path, known: Sequence[str]) -> None:
    """Write fit.yaml and score.yaml."""
    names = ", ".join(f'"{name}"' for name in known)
    for file, text in (("fit.yaml", FIT), ("score.yaml", SCORE)):
        (folder / file).write_text(text.format(folder=folder, known=names), encoding="utf-8")
