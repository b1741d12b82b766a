"""Choice of the known examples that a bundle keeps: held-out images, every class as often as the others."""

import hashlib
import io
from collections import defaultdict
from itertools import chain, zip_longest

import numpy as np
import torch
from PIL import Image

from gradosr.bundle.examples import PICTURES, SIDE, KnownExamples
from gradosr.config import CompleteFitJob
from gradosr.detectors import Observation
from gradosr.fit.known_images import CALIBRATION, FITTING, KnownImages

_QUALITY = 80
_HELD_OUT = (FITTING, CALIBRATION)


def examples(job: CompleteFitJob, known: KnownImages, *seen: Observation) -> KnownExamples | None:
    """Return the examples that the job asks for; `seen` are the observations of the fitting and calibration images.

    None if it asks for none, or if the classifier has no features by which one could be found to be like another image.
    """
    features = [one.features_BF for one in seen]
    if job.known_examples == "none" or any(one is None for one in features):
        return None
    parts = [known.of(use) for use in _HELD_OUT]
    features_NF = torch.cat([one.cpu() for one in features if one is not None])
    labels = torch.cat([part.labels_N for part in parts]).tolist()
    places_N = torch.cat([part.places_N for part in parts])
    keys = [known.keys[place] for place in places_N.tolist()]
    usable = features_NF.isfinite().all(1).tolist()
    chosen = torch.tensor(_spread([(label, key) for label, key in zip(labels, keys, strict=True)], usable))
    largest = torch.finfo(torch.float16).max
    return KnownExamples(
        [keys[row] for row in chosen.tolist()],
        [job.classifier.classes[labels[row]] for row in chosen.tolist()],
        [
            _jpeg(known.pixels[place][0]) if job.known_examples == "thumbnails" else None
            for place in places_N[chosen].split(1)
        ],
        features_NF[chosen].clamp(-largest, largest).half().numpy(),
    )


def _spread(images: list[tuple[int, str]], usable: list[bool]) -> list[int]:
    """Choose rows of images, given as label and key: by hash of their keys, one of each class in turn."""
    by_class: dict[int, list[int]] = defaultdict(list)
    for row in sorted(
        range(len(images)), key=lambda row: hashlib.sha256(images[row][1].encode(errors="surrogateescape")).digest()
    ):
        if usable[row]:
            by_class[images[row][0]].append(row)
    turns = zip_longest(*(by_class[label] for label in sorted(by_class)))
    return [row for row in chain.from_iterable(turns) if row is not None][:PICTURES]


def _jpeg(pixels: torch.Tensor) -> bytes:
    """Return an image [3, H, W] as JPEG, made smaller if needed."""
    picture = Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    body = io.BytesIO()
    picture.save(body, "JPEG", quality=_QUALITY, optimize=True)
    return body.getvalue()
