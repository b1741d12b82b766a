"""Known images for fitting: read, filtered, and split three ways by key.

training      trains a classifier (and the transfer detector)
fitting       held out of training: standardises, and fits the one_class detector
calibration   held out of everything: used for p-values alone
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradosr.archive.decoded import DecodedImages
from gradosr.archive.image import EncodedImage
from gradosr.archive.names import count, listed
from gradosr.archive.pixel_file import PixelFile
from gradosr.config import CompleteFitJob, FitJob
from gradosr.errors import InputError
from gradosr.store import Store

TRAINING, FITTING, CALIBRATION = 0, 1, 2
HELD_OUT = 1.0
"""Upper bound of the places of images that are held out; an image that trains has exactly this place."""
USES = {"training": TRAINING, "fitting": FITTING, "calibration": CALIBRATION}


@dataclass(frozen=True)
class KnownImages:
    """Labelled images of the known classes, at the classifier's input size; [rows] reads the pixels of some."""

    pixels: PixelFile
    """Pixels of these images, and of others read with them."""
    places_N: Tensor
    """Row of each image in `pixels`."""
    labels_N: Tensor
    """Index of each image's class."""
    use_N: Tensor
    """Use of each image: TRAINING, FITTING or CALIBRATION."""
    left_out: Mapping[str, int]
    """Number of images that were read and not kept, by reason."""
    other_labels: Mapping[str, int]
    """Number of images left out because of their label, by label; many labels are counted as one."""
    keys: Mapping[int, str]
    """Key of each image that is held out, by its row in `pixels`."""

    def of(self, *uses: int) -> "KnownImages":
        """Return the images that have one of the given uses."""
        rows = torch.isin(self.use_N, torch.tensor(uses))
        return self._of(rows, self.labels_N[rows])

    def of_classes(self, classes: Sequence[int]) -> "KnownImages":
        """Return the images of the given classes (ascending indices), relabelled by their position in `classes`."""
        rows = torch.isin(self.labels_N, torch.tensor(classes))
        labels_N = torch.searchsorted(torch.tensor(classes), self.labels_N[rows])
        return self._of(rows, labels_N)

    def _of(self, rows: Tensor, labels_N: Tensor) -> "KnownImages":
        return replace(self, places_N=self.places_N[rows], labels_N=labels_N, use_N=self.use_N[rows])

    def __len__(self) -> int:
        return len(self.labels_N)

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        return self.pixels[self.places_N[rows]]

    def counts(self) -> dict[str, int]:
        """Return the number of images by use."""
        return {name: int((self.use_N == use).sum()) for name, use in USES.items()}


def read_known(
    job: CompleteFitJob,
    store: Store,
    decoded: DecodedImages,
    classes: Sequence[str],
    *,
    keep_training: bool,
    seen: Callable[[], object] = lambda: None,
) -> KnownImages:
    """Read the known images of a job's input; their pixels go to a temporary file. `seen` is called for each.

    Raises InputError if labels, or all images of one use, are missing; MachineFault if the disk has no room.
    """
    split = _Split(job, store)
    choice = _Choice(job, classes, split, keep_training=keep_training)
    pixels = PixelFile()
    labels: list[int] = []
    places: list[float] = []
    keys: dict[int, str] = {}
    for image in decoded.read(job.input, job.classifier.transform, job.max_pixels, choice.keep):
        seen()
        if image.pixels is None:
            choice.left_out["unreadable"] += 1
        else:
            places.append(split.place(image.encoded))
            if places[-1] < HELD_OUT:
                keys[len(pixels)] = image.encoded.key
            pixels.append(image.pixels)
            labels.append(choice.wanted[image.encoded.label or ""])
    if not labels:
        raise InputError(
            f"{job.input.uri}: no images to fit with ({_reasons(choice.left_out)}{_labels(choice.others)}); "
            "check known, labels and held_out"
        )
    use_N = _uses(torch.tensor(places, dtype=torch.float64))
    for name, use in USES.items():
        if not (use_N == use).any() and (use != TRAINING or keep_training):
            raise InputError(f"{job.input.uri}: no images left for {name}; check held_out")
    numbers_N = torch.arange(len(pixels))
    return KnownImages(pixels, numbers_N, torch.tensor(labels), use_N, choice.left_out, choice.others, keys)


class _Choice:
    """The images that a job keeps of its input, and counts of the others by reason."""

    def __init__(self, job: CompleteFitJob, classes: Sequence[str], split: "_Split", *, keep_training: bool) -> None:
        self.wanted = {name: index for index, name in enumerate(classes) if not job.known or name in job.known}
        self.left_out = {"other_classes": 0, "unlabelled": 0, "unreadable": 0, "not_held_out": 0}
        self.others = Counter[str]()
        self._split, self._keep_training = split, keep_training

    def keep(self, image: EncodedImage) -> bool:
        """Return whether an image is kept; asked before decoding, which is the expensive step."""
        if image.label not in self.wanted:
            self.left_out["unlabelled" if image.label is None else "other_classes"] += 1
            if image.label is not None:
                count(image.label, self.others)
            return False
        kept = self._keep_training or self._split.place(image) < HELD_OUT
        self.left_out["not_held_out"] += not kept
        return kept


def fitting_share(held_out: int) -> float:
    """Return the share of the `held_out` images that fits the detector; the rest calibrates.

    The share is half when there are few images, and a quarter from 1,500 on. The default detector gains little from
    more than about 400 images, whereas more calibration images allow smaller p-values to be certified.
    """
    return max(0.25, min(0.5, 375 / max(1, held_out)))


def _uses(place_N: Tensor) -> Tensor:
    """Return the use of each image, given its place among the images held out."""
    held_out_N = place_N < HELD_OUT
    fitting_N = place_N < fitting_share(int(held_out_N.sum()))
    return torch.where(fitting_N, FITTING, torch.where(held_out_N, CALIBRATION, TRAINING))


def _labels(others: Mapping[str, int]) -> str:
    return f"; labels found: {listed(others)}" if others else ""


def _reasons(left_out: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in left_out.items())


class _Split:
    """The choice of the images held out and their order, by a list or by hashes of keys, whatever the input's order."""

    def __init__(self, job: FitJob, store: Store) -> None:
        self._seed = job.seed
        self._fraction = job.held_out if isinstance(job.held_out, float) else None
        self._listed = frozenset[str]() if isinstance(job.held_out, float) else _read_list(store, job.held_out)

    def place(self, image: EncodedImage) -> float:
        """Return the image's place among the images held out, below HELD_OUT; or HELD_OUT for an image that trains."""
        if self._fraction is not None:
            held_out = _unit(self._seed, "held out", image.key) < self._fraction
        else:
            held_out = image.key in self._listed or image.source in self._listed
        return _unit(self._seed, "fitting", image.key) if held_out else HELD_OUT


def _unit(seed: int, salt: str, key: str) -> float:
    """Return a pseudo-random number in [0, 1) that depends on nothing but the arguments."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{salt}/{key}".encode()).digest()[:8], "big") / 2**64


def _read_list(store: Store, uri: str) -> frozenset[str]:
    try:
        text = store.read(uri).decode()
        names = json.loads(text) if text.lstrip().startswith(("[", "{")) else text.splitlines()
        names = names["held_out"] if isinstance(names, dict) else names
    except (ValueError, KeyError) as error:
        wants = "a JSON list, an object that holds one as held_out, or one a line"
        raise InputError(f"{uri}: expected keys or source paths, {wants}") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{uri}: expected keys or source paths, found something else in the list")
    return frozenset(name.strip() for name in names if name.strip())
