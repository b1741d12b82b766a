"""Generated archives and bundles for the benchmark of a job."""

import copy
import io
import tarfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from gradosr.bundle.bundle import Bundle
from gradosr.bundle.calibration import Calibration
from gradosr.bundle.manifest import Manifest
from gradosr.classifier.build import build_classifier, input_size
from gradosr.config import Detector, OneClassSettings, Precision, TransformSettings
from gradosr.detectors import Known, Observation, detector_class, restore
from gradosr.scoring.compute import Compute
from gradosr.scoring.observer import Observer
from gradosr.store import Store, join

CLASSES = tuple(f"class {number}" for number in range(10))
SMALL = f"{__name__}:small_net"
FITTED_ON = 40
"""Number of random images that the detector is fitted to."""
_GRAIN = 8
"""Side of a patch in pixels. Photographs are smooth too, and JPEG needs about a tenth of the bytes it needs for
noise."""


class MadeUp(NamedTuple):
    """A kind of generated archive and its classifier."""

    kind: str
    arch: str
    size: int
    """Side of an image in pixels."""
    images: int
    """Images in a shard: about ten seconds of work on two cores."""
    shard: Callable[[Iterator[bytes]], bytes]


def small_net(num_classes: int) -> nn.Module:
    """Build a network of four convolutions and a linear layer, for images of 32 pixels."""
    widths = (3, 32, 64, 128, 128)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * widths[-1], num_classes))


def _tar(images: Iterator[bytes]) -> bytes:
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w") as archive:
        for number, data in enumerate(images):
            member = tarfile.TarInfo(f"{number:06}.jpg")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return body.getvalue()


def _parquet(images: Iterator[bytes]) -> bytes:
    body = io.BytesIO()
    rows = [{"bytes": data, "path": f"{number:06}.jpg"} for number, data in enumerate(images)]
    pq.write_table(pa.table({"image": rows}), body, row_group_size=1000)
    return body.getvalue()


MADE_UP = {
    "tar": MadeUp("tar", "torchvision:resnet18", 224, 500, _tar),
    "parquet": MadeUp("parquet", SMALL, 32, 10_000, _parquet),
}


def write_archive(made: MadeUp, store: Store, uri: str, shards: int, images: int) -> dict[str, Any]:
    """Write `shards` shards with `images` different JPEGs each; return the `input` section of a score job."""
    for number in range(shards):
        generator = torch.Generator().manual_seed(number)
        jpegs = (jpeg(made.size, made.size, generator) for _ in range(images))
        store.write(join(uri, f"{number:05}.{made.kind}"), made.shard(jpegs))
    return {"kind": made.kind, "uri": join(uri, "")}


def write_bundle(made: MadeUp, store: Store, uri: str) -> None:
    """Write a bundle from `make_bundle` for images of the archive's size."""
    torch.manual_seed(0)
    arguments = {"num_classes": len(CLASSES)}
    classifier = build_classifier(made.arch, arguments, len(CLASSES), trusted=[SMALL])
    make_bundle(made.arch, classifier, TransformSettings(crop=made.size), CLASSES).save(store, uri)


def make_bundle(
    arch: str,
    classifier: nn.Module,
    transform: TransformSettings,
    classes: tuple[str, ...],
    settings: Detector | None = None,
    device: torch.device | None = None,
) -> Bundle:
    """Make a bundle of this classifier, which was built with `num_classes`.

    Detector and calibration are fitted to random images.
    """
    settings, device = settings or OneClassSettings(), device or torch.device("cpu")
    observer = Observer(copy.deepcopy(classifier), transform, settings.signals, Compute(device))
    height, width = input_size(transform)
    images = torch.stack([_pixels(height, width, torch.Generator().manual_seed(i)) for i in range(FITTED_ON)])
    head = observer.check(len(classes)).head
    seen = Observation.joined((observer(piece).observation for piece in images.split(20)), len(images))
    known = Known(seen, seen.logits_BK.argmax(1), head)
    detector = detector_class(settings.kind).fit(known, settings)
    scores = detector.score(seen).cpu().numpy()
    arrays = {name: array.detach().cpu() for name, array in detector.arrays().items()}
    manifest = Manifest(
        arch=arch,
        args={"num_classes": len(classes)},
        classes=classes,
        transform=transform,
        detector=settings.kind,
        **settings.signals.model_dump(),
        false_alarm_rate=0.05,
    )
    calibration = Calibration.of(scores, 0.05)  # of random images, which are as good in any precision
    precisions: tuple[Precision, ...] = ("float32", "tf32", "bfloat16")
    calibrations = dict.fromkeys(precisions, calibration)
    return Bundle(manifest, classifier, restore(settings.kind, arrays), calibrations)


def _pixels(height: int, width: int, generator: torch.Generator) -> Tensor:
    """Return random patches, interpolated, as uint8 [3, height, width]."""
    patches = torch.rand(1, 3, height // _GRAIN, width // _GRAIN, generator=generator)
    return (255 * F.interpolate(patches, size=(height, width), mode="bilinear")[0]).byte()


def jpeg(height: int, width: int, generator: torch.Generator, quality: int = 90) -> bytes:
    """Return a JPEG of random patches, interpolated."""
    body = io.BytesIO()
    Image.fromarray(_pixels(height, width, generator).permute(1, 2, 0).numpy()).save(body, "JPEG", quality=quality)
    return body.getvalue()
