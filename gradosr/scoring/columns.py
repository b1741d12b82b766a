"""Record batches of the result schema for prepared images: with scores if there are pixels, else with the reason.

B images, S of them with pixels.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gradosr.archive.loading import PreparedImage
from gradosr.results.part import schema
from gradosr.scoring.scorer import Scorer, Scores

Stored = Literal["none", "unknown", "all"]

NON_FINITE = "a logit or a gradient norm is not a finite number"


def score_images(
    scorer: Scorer, images: Sequence[PreparedImage], representation: Stored = "none", features: Stored = "none"
) -> pa.RecordBatch:
    """Return one row per image, in order, without the columns `shard` and `row`.

    `representation` and `features` say for which rows these two columns are stored, as in ScoreJob.
    """
    return start_scoring(scorer, images, representation, features)()


def start_scoring(
    scorer: Scorer, images: Sequence[PreparedImage], representation: Stored = "none", features: Stored = "none"
) -> Callable[[], pa.RecordBatch]:
    """Start scoring a batch; return a function that waits for the scores and returns the rows of `score_images`.

    Until it is called, a GPU works on the batch while the caller does something else.
    """
    pixels = [image.pixels for image in images if image.pixels is not None]
    pending = scorer.start(scorer.compute.stack(pixels)) if pixels else None

    def rows() -> pa.RecordBatch:
        columns = _facts(images)
        if pending:
            scored = _scored(scorer, pending.wait(), representation, features)
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


def _scored(scorer: Scorer, scores: Scores, representation: Stored, features: Stored) -> dict[str, pa.Array]:
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
    if representation != "none":
        columns["representation"] = _stored(scores.representation_BC, representation, scores)
    if features != "none" and scores.features_BF is not None:
        columns["features"] = _stored(scores.features_BF, features, scores)
    return columns


def _stored(values_SN: NDArray[np.floating], wanted: Stored, scores: Scores) -> pa.Array:
    """Return rows of N numbers as a column, null where they are not wanted."""
    left_out_S = ~(scores.finite if wanted == "all" else scores.finite & scores.is_unknown)
    numbers = pa.array(values_SN.reshape(-1))
    return pa.FixedSizeListArray.from_arrays(numbers, values_SN.shape[1], mask=pa.array(left_out_S))
