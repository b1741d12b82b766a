"""Rows of the result schema for prepared images: with scores if there are pixels, else with the reason."""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from gradosr.archive.loading import PreparedImage
from gradosr.results.part import Row, stored_values
from gradosr.scoring.scorer import Scorer, Scores

Stored = Literal["none", "unknown", "all"]


def scored_rows(
    scorer: Scorer, images: Sequence[PreparedImage], representation: Stored = "none", features: Stored = "none"
) -> Iterator[Row]:
    """Yield one row per image, in order; absent columns are null.

    `representation` and `features` say for which rows these two columns are stored, as in ScoreJob.
    """
    return start_rows(scorer, images, representation, features)()


def start_rows(
    scorer: Scorer, images: Sequence[PreparedImage], representation: Stored = "none", features: Stored = "none"
) -> Callable[[], Iterator[Row]]:
    """Start scoring a batch; return a function that waits for the scores and yields the rows of `scored_rows`.

    Until it is called, a GPU works on the batch while the caller does something else.
    """
    pixels = [image.pixels for image in images if image.pixels is not None]
    pending = scorer.start(_stacked(pixels, scorer)) if pixels else None

    def rows() -> Iterator[Row]:
        scores = pending.wait() if pending else None
        return _merged(images, _scored(scorer, scores, representation, features) if scores else iter(()))

    return rows


def _merged(images: Sequence[PreparedImage], scored: Iterator[Row]) -> Iterator[Row]:
    for image in images:
        encoded = image.encoded
        facts: Row = {"key": encoded.key, "source": encoded.source, "label": encoded.label}
        facts |= {"width": image.width, "height": image.height}
        if image.fault is not None:
            yield {**facts, "status": image.fault.status, "error": image.fault.error}
        else:
            yield facts | next(scored)


def _stacked(pixels: list[Tensor], scorer: Scorer) -> Tensor:
    """Return one batch; for a GPU in pinned memory, which is copied directly and while the CPU goes on."""
    pinned = scorer.observer.device.type == "cuda"
    images_BCHW = torch.empty((len(pixels), *pixels[0].shape), dtype=torch.uint8, pin_memory=pinned)
    return torch.stack(pixels, out=images_BCHW)


def _scored(scorer: Scorer, scores: Scores, representation: Stored, features: Stored) -> Iterator[Row]:
    representations = stored_values(representation, scores.is_unknown, scores.representation_BC)
    feature_rows = stored_values(features, scores.is_unknown, scores.features_BF)
    for b, finite in enumerate(scores.finite):
        if not finite:
            yield {"status": "non_finite", "error": "a logit or a gradient norm is not a finite number"}
        else:
            row = _row(scores, b, scorer.bundle.manifest.classes)
            yield row | {"representation": representations[b], "features": feature_rows[b]}


def _row(scores: Scores, b: int, classes: Sequence[str]) -> Row:
    predicted, unknown = classes[scores.predicted_index[b]], bool(scores.is_unknown[b])
    return {
        "status": "ok",
        "predicted_class": predicted,
        "predicted_index": int(scores.predicted_index[b]),
        "confidence": float(scores.confidence[b]),
        "max_logit": float(scores.max_logit[b]),
        "energy": float(scores.energy[b]),
        "unknown_score": float(scores.unknown_score[b]),
        "p_value": float(scores.p_value[b]),
        "is_unknown": unknown,
        "open_set_class": "unknown" if unknown else predicted,
    }
