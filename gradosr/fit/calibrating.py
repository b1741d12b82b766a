"""Calibration of a detector on held-out known images, pooled or per class; B images."""

from collections.abc import Sequence

import torch

from gradosr.bundle.calibration import SHOWN, Calibration, check_enough, with_own
from gradosr.config import CalibrationKind, FitJob
from gradosr.detectors import Detector, Observation
from gradosr.fit.known_images import CALIBRATION, KnownImages


def check_calibration(job: FitJob, known: KnownImages, classes: Sequence[str]) -> None:
    """Raise InputError if a job's calibration images are too few: by their labels, before hours of work.

    Which classes they are taken for is not known yet; it is counted once the classifier has seen them.
    """
    labels_N = known.labels_N[known.use_N == CALIBRATION]
    check_enough(len(labels_N), job.false_alarm_rate)
    if job.calibration == "per_class":
        images_K = torch.bincount(labels_N, minlength=len(classes)).numpy()
        with_own(images_K, job.false_alarm_rate, classes, "by label")


def calibrate(
    detector: Detector, seen: Observation, kind: CalibrationKind, rate: float, classes: Sequence[str]
) -> Calibration:
    """Calibrate a detector on the images of an observation. Raises InputError if they are too few."""
    predicted_B = seen.logits_BK.argmax(1).cpu().numpy() if kind == "per_class" else None
    return Calibration.of(detector.score(seen).cpu().numpy(), rate, predicted_B, classes)


def compared_with_all(calibration: Calibration, classes: Sequence[str]) -> str | None:
    """Return a line on the classes that have no calibration of their own, if any should have."""
    names = [name for k, name in enumerate(classes) if k not in calibration.by_class]
    if calibration.kind == "pooled" or not names:
        return None
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (
        f"calibration: known images are (almost) never taken for {', '.join(names[:SHOWN])}{more}; images that are get "
        "p-values from the calibration images of all classes"
    )
