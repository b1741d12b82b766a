"""Signs that a fit job is not what its user meant: warnings with numbers, and an error where names are exchanged.

B images.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradosr.archive.names import listed
from gradosr.config import FOLDER, LIBRARIES, FitJob
from gradosr.errors import InputError
from gradosr.fit.known_images import KnownImages
from gradosr.text import plural

SHOWN = 10
"""Most classes that a message names."""
CERTAIN = 3.0
"""Standard errors by which an accuracy must differ to be called another one."""
TELLING = 5
"""Least images of a class, most of which are called by another name, before the names are said to be exchanged."""


def setting_warnings(job: FitJob) -> list[str]:
    """Return what a job leaves to defaults that its classifier may not have been made for."""
    settings, transform = job.classifier, job.classifier.transform
    own = settings.arch.partition(":")[0] not in LIBRARIES and not settings.arch.startswith(FOLDER)
    missing = [name for name in ("mean", "std") if transform and name not in transform.model_fields_set]
    if not own or transform is None or not missing:
        return []
    values = ", ".join(f"{name} {list(getattr(transform, name))}" for name in missing)
    return [
        f"classifier.transform says no {' and no '.join(missing)}, so those of ImageNet are taken ({values}); "
        f"{settings.arch} needs those that it was trained with"
    ]


def image_warnings(job: FitJob, known: KnownImages, classes: Sequence[str]) -> list[str]:
    """Return a line for classes without an image, and one for each reason why images were left out."""
    counts, wanted = torch.bincount(known.labels_N, minlength=len(classes)).tolist(), job.known or classes
    bare = [name for name, images in zip(classes, counts, strict=True) if name in wanted and not images]
    lines = [f"no image of {len(bare)} of {plural(len(wanted), 'class', 'classes')}: {_named(bare)}"] if bare else []
    left_out, others = known.left_out, known.other_labels
    texts = {
        "other_classes": f"their labels are none of the classes ({listed(others)})",
        "unlabelled": "they have no label",
        "unreadable": "they cannot be decoded",
        "not_held_out": f"held_out is {job.held_out} and this job trains nothing; held_out: 1 takes all of them",
    }
    total = sum(left_out.values()) + len(known)
    lines += [
        f"left out {left_out[reason]:,} of {plural(total, 'image')}: {text}"
        for reason, text in texts.items()
        if left_out[reason]
    ]
    return lines


Calls = Counter[tuple[int, int]]
"""Number of images by the index of their label and of the class that they are called; most pairs never occur."""


def calls(labels_B: Tensor, predicted_B: Tensor) -> Calls:
    """Count images by label and predicted class."""
    return Counter(zip(labels_B.tolist(), predicted_B.tolist(), strict=True))


def accuracy_of(found: Calls) -> float:
    """Return the share of the images that are called by their label."""
    return sum(images for (label, called), images in found.items() if label == called) / found.total()


def check_names(found: Calls, classes: Sequence[str]) -> None:
    """Raise InputError if most images of some classes are called by each other's names, with the order that fits."""
    images = Counter[int]()
    for (label, _), number in found.items():
        images[label] += number
    moved = {
        label: called
        for (label, called), number in sorted(found.items())
        if label != called and 2 * number > images[label] and images[label] >= TELLING
    }
    while dropped := [label for label, called in moved.items() if called not in moved]:  # the rest forms circles
        for label in dropped:
            del moved[label]
    if len(set(moved.values())) < max(2, len(moved)):
        return
    fitting = list(classes)
    for label, called in moved.items():
        fitting[called] = classes[label]
    shown = ", ".join(
        f"{100 * found[label, called] / images[label]:.0f} % of {classes[label]} are called {classes[called]}"
        for label, called in list(moved.items())[:SHOWN]
    )
    after = sum(found[label, moved.get(label, label)] for label in images) / found.total()
    raise InputError(
        f"classifier.classes: names look exchanged: {shown}; in the order of the logits they seem to be "
        f"[{', '.join(fitting)}], with accuracy {after:.4f} instead of {accuracy_of(found):.4f}; "
        "correct them, or accept them with --force"
    )


def accuracy_warnings(found: Calls, classes: int, stated: float | None) -> list[str]:
    """Return a line if the accuracy is near chance, or surely lower than the stated one."""
    total, accuracy, chance = found.total(), accuracy_of(found), 1 / classes
    if accuracy <= chance + CERTAIN * (chance * (1 - chance) / total) ** 0.5:
        return [
            f"accuracy {accuracy:.4f} on {plural(total, 'held-out image')} is hardly above chance, {chance:.4f}; "
            "check the weights, the order of the classes and the transform"
        ]
    if stated is not None and accuracy + CERTAIN * (accuracy * (1 - accuracy) / total) ** 0.5 < stated:
        return [
            f"accuracy {accuracy:.4f} on {plural(total, 'held-out image')} is far below the {stated:g} of "
            "expected_accuracy; check the transform, the order of the classes and the labels"
        ]
    return []


def by_class(found: Calls, classes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return images and accuracy by class; None for the accuracy of a class without images."""
    images = Counter[int]()
    for (label, _), number in found.items():
        images[label] += number
    return {
        name: {"images": images[index], "accuracy": found[index, index] / images[index] if images[index] else None}
        for index, name in enumerate(classes)
    }


def told_by_class(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Format the accuracies by class, the lowest first."""
    measured = sorted((one["accuracy"], name) for name, one in found.items() if one["images"])
    shown = ", ".join(f"{name} {accuracy:.4f}" for accuracy, name in measured[:SHOWN])
    return f"accuracy by class: {shown}{f', {len(measured) - SHOWN} more' if len(measured) > SHOWN else ''}"


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
