"""Scoring and explaining of images in this process: `gradosr.load(uri).score(images)`."""

import heapq
import os
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import pyarrow as pa
from torch import Tensor

from gradosr.archive.loading import PreparedImage
from gradosr.bundle.bundle import Bundle as SavedBundle
from gradosr.bundle.bundle import load_bundle
from gradosr.config import ComputeSettings, DeviceName, Precision, S3Settings, Serving
from gradosr.config.settings import validate_settings
from gradosr.explanation import Explainer
from gradosr.explanation.explainer import read_known
from gradosr.python.images import ImageLike, prepared_batches
from gradosr.python.pictures import SHOWN
from gradosr.python.scored import SCHEMA, Scored, whole
from gradosr.scoring.columns import score_images
from gradosr.scoring.scorer import Scorer
from gradosr.store import Store

if TYPE_CHECKING:
    from gradosr.python.explanations import Explanations


def load(
    uri: "str | os.PathLike[str]",
    *,
    device: DeviceName = "auto",
    precision: Precision = "float32",
    batch_size: int = 64,
    trust: tuple[str, ...] = (),
    store: S3Settings | None = None,
) -> "Bundle":
    """Load a bundle, ready to score images in this process.

    Settings are those of a score config. Raises BundleError, ClassifierError, ConfigError or StoreError, each in one
    line.
    """
    given = {"device": device, "precision": precision, "batch_size": batch_size, "trust": trust}
    settings = validate_settings(Serving, {"bundle": os.fspath(uri), **given}, "gradosr.load")
    reached = Store(store or S3Settings())
    saved = load_bundle(reached, settings.bundle, settings.trust)
    return Bundle(saved, settings, batch_size=settings.batch_size, store=reached, uri=settings.bundle)


class Bundle:
    """A classifier with its unknown detector, ready to score images and to explain their scores."""

    def __init__(
        self,
        saved: SavedBundle,
        settings: ComputeSettings | None = None,
        *,
        batch_size: int = 64,
        store: Store | None = None,
        uri: str | None = None,
    ) -> None:
        """Put a bundle on a device; `gradosr.load` reads one first, from `uri`."""
        self._scorer = Scorer(saved, settings or ComputeSettings())
        self._batch_size, self._store, self._uri = batch_size, store or Store(), uri

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the known classes."""
        return self._scorer.bundle.manifest.classes

    @property
    def false_alarm_rate(self) -> float:
        """The share of known images that may be called unknown."""
        return self._scorer.bundle.manifest.false_alarm_rate

    def __repr__(self) -> str:
        manifest = self._scorer.bundle.manifest
        shown = ", ".join(self.classes[:5]) + (", ..." if len(self.classes) > 5 else "")
        return f"<gradosr.Bundle {manifest.arch}, {len(self.classes)} classes ({shown}), detector {manifest.detector}>"

    def score(self, images: "ImageLike | Iterable[ImageLike]") -> Scored:
        """Score images of any size, one or many; a path may also be a folder, a pattern, or a tar or Parquet file.

        A file or bytes that cannot be decoded become a row with a status and the reason, as in a table of results.
        Raises TypeError or ValueError for what is no image, StoreError for a file that cannot be read.
        """
        tables, shown = [], list[tuple[float, int, Tensor]]()
        first = 0
        for batch in self._batches(images):
            rows = score_images(self._scorer, batch)
            tables.append(whole(rows))
            for row, (image, score) in enumerate(zip(batch, tables[-1]["unknown_score"].to_pylist(), strict=True)):
                if image.pixels is not None and score is not None:
                    heapq.heappush(shown, (score, first + row, image.pixels))
                    if len(shown) > SHOWN:
                        heapq.heappop(shown)
            first += len(batch)
        table = pa.concat_tables(tables) if tables else SCHEMA.empty_table()
        return Scored(table, {row: pixels for _, row, pixels in shown})

    def explain(self, images: "ImageLike | Iterable[ImageLike]") -> "Explanations":
        """Tell why images have their unknown scores, as `gradosr explain` does; they are given as to `score`.

        What cannot be decoded has the reason for that in place of an explanation. Raises what `score` raises.
        """
        from gradosr.python.explanations import Explanations, explained

        return Explanations([one for batch in self._batches(images) for one in explained(self._explainer, batch)])

    @cached_property
    def _explainer(self) -> Explainer:
        digest, precision = self._scorer.bundle.digest, self._scorer.compute.precision
        known = read_known(self._store, self._uri, digest, precision) if self._uri else None
        return Explainer(self._scorer, known)

    def _batches(self, images: "ImageLike | Iterable[ImageLike]") -> Iterator[list[PreparedImage]]:
        return prepared_batches(images, self._scorer.bundle.manifest.transform, self._store, self._batch_size)
