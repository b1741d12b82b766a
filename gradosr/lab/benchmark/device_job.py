"""Whole jobs on one device, from JPEG bytes to rows, without a store.

Also measured is the gain from a second worker on the device.
"""

import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import cycle
from typing import Any, NamedTuple

import pyarrow as pa
import torch

from gradosr.archive.image import EncodedImage
from gradosr.archive.loading import PreparedImage, prepared_batches
from gradosr.classifier.build import build_classifier
from gradosr.config import MAX_PIXELS, BaselineSettings, ComputeSettings, OneClassSettings, Precision, TransformSettings
from gradosr.lab.benchmark.archives import jpeg, make_bundle
from gradosr.lab.benchmark.contenders import workload
from gradosr.lab.benchmark.device_facts import Facts, Meter, profiled, waits
from gradosr.scoring.columns import start_scoring
from gradosr.scoring.scorer import Scorer

STRETCH = 768
"""Images in one run of a stream."""
FEW = 2
"""Number of batches that are profiled."""


class Archive(NamedTuple):
    """Generated images, and how they are prepared for the classifier."""

    jpegs: list[bytes]
    transform: TransformSettings
    threads: int

    def batches(self, size: int) -> Iterator[list[PreparedImage]]:
        """Yield batches without end, prepared ahead on all threads."""
        images = (EncodedImage(f"{number}.jpg", body) for number, body in enumerate(cycle(self.jpegs)))
        return prepared_batches(images, self.transform, MAX_PIXELS, size, self.threads)


def made_up(count: int, side: int, threads: int) -> Archive:
    """Generate different JPEGs of 500x375 pixels and about 30 KB, to be scaled and cropped to `side`."""
    jpegs = [jpeg(375, 500, torch.Generator().manual_seed(number), quality=70) for number in range(count)]
    return Archive(jpegs, TransformSettings(resize=side * 8 // 7, crop=side), threads)


def decoding(archive: Archive, meter: Meter, batch: int, *, small: bool) -> Facts:
    """Measure images per second of decoding, scaling and cropping alone."""
    size = sum(map(len, archive.jpegs)) / len(archive.jpegs)
    rate = meter.rate(archive.batches(batch), len, batch, 1 if small else STRETCH // batch)
    return {"images/s": rate, "threads": archive.threads, "bytes of a JPEG": size}


class Job:
    """A detector's job on generated images, with random weights and 1000 classes."""

    def __init__(
        self,
        arch: str,
        archive: Archive,
        settings: OneClassSettings | BaselineSettings,
        meter: Meter,
        precision: Precision,
    ) -> None:
        """Fit the detector, in float32, and load the scorer."""
        self._archive, self._meter, classes = archive, meter, tuple(map(str, range(1000)))
        torch.manual_seed(0)
        classifier = build_classifier(arch, {"num_classes": len(classes)}, len(classes))
        bundle = make_bundle(arch, classifier, archive.transform, classes, settings, meter.device)
        started = time.perf_counter()
        self._scorer = Scorer(
            bundle, ComputeSettings(device="cuda" if meter.device.type == "cuda" else "cpu", precision=precision)
        )
        meter.wait()
        self._loading = time.perf_counter() - started

    def facts(self, sizes: tuple[int, ...], *, small: bool) -> Facts:
        """Measure loading and, by batch size, the speed of the job.

        Reported are scoring alone, decoding and scoring, the idle share of the device, and its waits.
        """
        by_size = {f"batch {size}": self._of(size, 1 if small else max(1, STRETCH // size)) for size in sizes}
        return {"loading s": self._loading, **by_size}

    def _of(self, size: int, stretch: int) -> Facts:
        meter, batches = self._meter, self._archive.batches(size)
        ready = [next(batches) for _ in range(FEW)]
        del batches
        facts: Facts = {"first batch s": meter.once(lambda: list(self._rows(ready[:1])))}
        list(self._rows(ready))
        alone = meter.rate(self._rows(cycle(ready)), len, size, stretch)
        facts["scoring alone, images/s"] = alone
        both = meter.rate(self._rows(self._archive.batches(size)), len, size, stretch)
        facts["decoding and scoring, images/s"] = both
        facts["peak MiB"] = meter.peak_mib(lambda: list(self._rows(ready)))
        if meter.device.type == "cuda":
            seen = profiled(lambda: list(self._rows(ready)), meter, FEW * size / alone)
            facts["device in scoring alone"] = seen
            facts["idle share, decoding and scoring"] = 1 - seen["busy ms"] / 1e3 / (FEW * size) * both
            facts["waits of a batch"] = waits(lambda: list(self._rows(ready[:1])))
        return facts

    def _rows(self, batches: Iterable[list[PreparedImage]]) -> Iterator[pa.RecordBatch]:
        """Yield each batch's rows while the device works on the next batch, as a worker does."""
        rows: Callable[[], pa.RecordBatch] | None = None
        for batch in batches:
            before, rows = rows, start_scoring(self._scorer, batch)
            if before:
                yield before()
        if rows:
            yield rows()


_held: dict[str, Any] = {}


def second_worker(arch: str, side: int, batch: int, precision: Precision, meter: Meter, stretch: float) -> Facts:
    """Measure images per second of the default detector's engine in one process, then in two on the same device.

    Figures are medians of runs of `stretch` seconds; the two processes run at the same time.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as one, ProcessPoolExecutor(1, mp_context=spawn) as other:
        loading = [pool.submit(_load, arch, side, batch, precision, meter) for pool in (one, other)]
        for loaded in loading:
            loaded.result()
        alone = one.submit(_rate, stretch).result()
        both = [pool.submit(_rate, stretch) for pool in (one, other)]
        together = [rate.result() for rate in both]
    return {"one": alone, "two, each": together, "two, of one": sum(together) / alone}


def _load(arch: str, side: int, batch: int, precision: Precision, meter: Meter) -> None:
    """Load, in a worker process, an engine that has chosen its forms."""
    given = workload(arch, side, batch, meter.device, precision, classes=1000)
    objectives = OneClassSettings().objectives
    _held["work"], _held["meter"], _held["batch"] = lambda: given.engine(given.images_BCHW, objectives), meter, batch
    meter.seconds(_held["work"])


def _rate(stretch: float) -> float:
    """Return, in a worker process, images per second, the median of as many stretches as the meter has runs."""
    meter: Meter = _held["meter"]
    rates = []
    for _ in range(meter.runs):
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < stretch:
            meter.once(_held["work"])
            count += _held["batch"]
        rates.append(count / (time.perf_counter() - start))
    return sorted(rates)[len(rates) // 2]
