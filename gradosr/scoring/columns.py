"""Record batches of the result schema for prepared images: with scores if there are pixels, else with the reason.

B images, S of them with pixels.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from gradosr.archive.loading import PreparedImage
from gradosr.config import Sample, ScoreJob, TransformSettings
from gradosr.results.part import EMBEDDING, schema, wide_column
from gradosr.scoring.embedder import Embedder
from gradosr.scoring.scorer import Scorer, Scores, stored

Stored = Literal["none", "unknown", "all"]


@dataclass(frozen=True)
class Kept:
    """The rows for which wide columns are stored, as in ScoreJob."""

    representation: Stored = "none"
    features: Stored = "none"
    signals: Stored | Sample = "none"
    embedder: Embedder | None = None
    """Second network, whose embeddings are stored of unknown images, and where features or signals are."""

    @classmethod
    def by(cls, job: ScoreJob, embedder: Embedder | None) -> "Kept":
        return cls(job.representation, job.features, job.signals, embedder)

    @property
    def beside(self) -> TransformSettings | None:
        """The transform of the second network, if there is one."""
        return None if self.embedder is None else self.embedder.transform

    def widths(self, scorer: Scorer) -> dict[str, int]:
        """Return the number of values per row of each wide column that is stored at all."""
        wanted = {} if self.representation == "none" else {"representation": len(scorer.observer.coordinates)}
        if self.signals != "none":
            wanted |= scorer.widths
        elif self.features != "none" and "features" in scorer.widths:
            wanted["features"] = scorer.widths["features"]
        return wanted if self.embedder is None else wanted | {EMBEDDING: self.embedder.width}

    def wide_bytes(self, scorer: Scorer) -> int:
        """Return the bytes of an image's wide columns where they are stored, before compression."""
        return sum(width * (4 if name == "representation" else 2) for name, width in self.widths(scorer).items())


NOTHING_WIDE = Kept()
NON_FINITE = "a logit or a gradient norm is not a finite number"


def score_images(scorer: Scorer, images: Sequence[PreparedImage], kept: Kept = NOTHING_WIDE) -> pa.RecordBatch:
    """Return one row per image, in order, without the columns `shard` and `row`."""
    return start_scoring(scorer, images, kept)()


def start_scoring(
    scorer: Scorer, images: Sequence[PreparedImage], kept: Kept = NOTHING_WIDE
) -> Callable[[], pa.RecordBatch]:
    """Start scoring a batch; return a function that waits for the scores and returns the rows of `score_images`.

    Until it is called, a GPU works on the batch while the caller does something else.
    """
    pixels = [image.pixels for image in images if image.pixels is not None]
    pending = scorer.start(scorer.compute.stack(pixels)) if pixels else None

    def rows() -> pa.RecordBatch:
        columns = _facts(images)
        if pending:
            scored = _scored(scorer, pending.wait(), [image for image in images if image.pixels is not None], kept)
            columns |= _spread(scored, images, columns)
        return pa.RecordBatch.from_pydict(columns)

    return rows


def _facts(images: Sequence[PreparedImage]) -> dict[str, pa.Array]:
    """Return the columns that need no scores; status and error are null where there is no fault."""
    types = schema()
    columns = {
        "key": [image.encoded.key for image in images],
        "source": [image.encoded.source for image in images],
        "label": [image.encoded.label for image in images],
        "width": [image.width for image in images],
        "height": [image.height for image in images],
        "status": [image.fault and image.fault.status for image in images],
        "error": [image.fault and image.fault.error for image in images],
    }
    return {name: pa.array(values, types.field(name).type) for name, values in columns.items()}


def _spread(
    scored: dict[str, pa.Array], images: Sequence[PreparedImage], facts: dict[str, pa.Array]
) -> dict[str, pa.Array]:
    """Return columns [S] as columns [B], null for images without pixels but for status and error, told in `facts`."""
    has_pixels_B = np.array([image.pixels is not None for image in images])
    if has_pixels_B.all():
        return scored
    place_B = pa.array(has_pixels_B.cumsum() - 1, pa.int32(), mask=~has_pixels_B)
    columns = {name: values.take(place_B) for name, values in scored.items()}
    return columns | {name: pc.coalesce(facts[name], columns[name]) for name in ("status", "error")}


def _scored(scorer: Scorer, scores: Scores, images: Sequence[PreparedImage], kept: Kept) -> dict[str, pa.Array]:
    """Return the columns of images with pixels; the scores are null where one of them is not finite."""
    missing_S = ~scores.finite
    unknown_S = pa.array(scores.is_unknown, mask=missing_S)
    predicted_S = pa.array(scores.predicted_index, mask=missing_S)
    class_S = pa.array(scorer.bundle.manifest.classes, pa.string()).take(predicted_S)
    columns = {
        "status": pa.array(np.where(scores.finite, "ok", "non_finite"), pa.string()),
        "error": pa.array(np.full(len(missing_S), NON_FINITE), pa.string(), mask=scores.finite),
        "predicted_class": class_S,
        "predicted_index": predicted_S,
        "is_unknown": unknown_S,
        "open_set_class": pc.if_else(unknown_S, "unknown", class_S),
    }
    for name in ("confidence", "max_logit", "energy", "unknown_score", "p_value"):
        columns[name] = pa.array(getattr(scores, name), mask=missing_S)
    keys = [image.encoded.key for image in images]
    wide: dict[str, NDArray[np.floating]] = {"representation": scores.representation_BC, **scores.signals}
    signals_S, features_S = _wanted(kept.signals, scores, keys), _wanted(kept.features, scores, keys)
    wanted = dict.fromkeys(scores.signals, signals_S)
    wanted["representation"] = _wanted(kept.representation, scores, keys)
    if "features" in wanted:
        wanted["features"] = signals_S | features_S
    if kept.embedder is not None:
        chosen_S = signals_S | features_S | _wanted("unknown", scores, keys)
        wide[EMBEDDING], wanted[EMBEDDING] = _embedded(kept.embedder, images, chosen_S)
    return columns | {name: wide_column(wide[name], wanted[name]) for name in kept.widths(scorer)}


def _embedded(
    embedder: Embedder, images: Sequence[PreparedImage], chosen_S: NDArray[np.bool_]
) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
    """Return the embeddings [S, F] of the chosen images, and which of these are of finite numbers [S]."""
    places = np.flatnonzero(chosen_S)
    found_NF = embedder([pixels for place in places.tolist() if (pixels := images[place].beside) is not None])
    there_S, values_SF = np.zeros_like(chosen_S), np.zeros((len(images), embedder.width), np.float16)
    there_S[places] = np.isfinite(found_NF).all(1)
    values_SF[places] = stored(torch.from_numpy(found_NF))
    return values_SF, there_S


def _wanted(stored: Stored | Sample, scores: Scores, keys: Sequence[str]) -> NDArray[np.bool_]:
    """Tell for which images a wide column is stored, [S]."""
    if stored == "none":
        return np.zeros_like(scores.finite)
    if stored == "all":
        return scores.finite
    wanted_S = scores.is_unknown
    if isinstance(stored, Sample):
        drawn = [zlib.crc32(key.encode()) % stored.sample == 0 for key in keys]
        wanted_S = wanted_S | np.array(drawn, bool)
    return scores.finite & wanted_S
