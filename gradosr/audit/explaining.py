"""Explanations of the images that an audit lists, made from the bundle and the archive's own images."""

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gradosr.archive.decode import to_input_size
from gradosr.bundle.manifest import read_manifest
from gradosr.config import AuditSettings, ComputeSettings, TransformSettings
from gradosr.errors import GradosrError, first_line
from gradosr.store import Store

if TYPE_CHECKING:
    from torch import Tensor

    from gradosr.explanation import Explanation

SECONDS = 60.0
"""Seconds after which no further batch is explained."""
BATCH = 16


class Explaining:
    """The images to be explained: their pixels are kept as they are read for the pictures, and explained afterwards."""

    def __init__(self, store: Store, uri: str, settings: AuditSettings, rows: Sequence[Mapping[str, Any]]) -> None:
        """Explain `rows` with the bundle at a URI. Raises BundleError if its manifest cannot be read."""
        manifest, _ = read_manifest(store, uri)
        self._store, self._uri, self._settings = store, uri, settings
        self._transform = manifest.transform
        self._wanted = [row["id"] for row in rows[: settings.explain]]
        self._inputs: dict[str, Tensor] = {}
        self._boxes: dict[str, list[float]] = {}

    @classmethod
    def of(
        cls, store: Store, bundle: str | None, settings: AuditSettings, rows: Sequence[Mapping[str, Any]]
    ) -> "Explaining | None":
        """Return the explaining of a run's rows with its bundle; None if there is nothing to explain, or no bundle."""
        return cls(store, bundle, settings, rows) if bundle and settings.explain and rows else None

    def see(self, row_id: str, pixels: "Tensor") -> None:
        """Keep an image, uint8 [3, H, W], if it is to be explained."""
        if row_id in self._wanted:
            self._inputs[row_id] = to_input_size(pixels, self._transform)
            self._boxes[row_id] = seen_box(self._transform, pixels.shape[1], pixels.shape[2])

    def facts(self) -> tuple[dict[str, Any] | None, list[str]]:
        """Explain the images that were seen; return what audit.json has of them, and notes on what is missing."""
        import torch

        from gradosr.explanation import Explainer

        ids, until = [one for one in self._wanted if one in self._inputs], time.monotonic() + SECONDS
        items: dict[str, Any] = {}
        if not ids:
            return None, []
        try:
            explainer = Explainer.load(self._store, self._uri, self._settings.trust, ComputeSettings())
            for start in range(0, len(ids), BATCH):
                if time.monotonic() > until:
                    break
                some = ids[start : start + BATCH]
                found = explainer(torch.stack([self._inputs[one] for one in some]))
                items |= {one: facts_of(why, self._boxes[one]) for one, why in zip(some, found, strict=True) if why}
        except GradosrError as error:
            return None, [f"no image is explained: {first_line(error)}"]
        notes = [f"{len(items)} of {len(ids)} images are explained: the minute for that was over"]
        return {"bundle": self._uri, "items": items}, notes if len(items) < len(ids) else []


def facts_of(explanation: "Explanation", box: Sequence[float]) -> dict[str, Any]:
    """Return an explanation as plain data, in words as well; `box` is the part of the image that the classifier saw."""
    from gradosr.explanation import words

    facts = explanation.facts()
    if facts["heat_map"]:
        facts["heat_map"]["box"] = list(box)
    return facts | {"said": words.sentences(explanation), "short": words.short(explanation)}


def seen_box(transform: TransformSettings, height: int, width: int) -> list[float]:
    """Return left, top, right and bottom of what a classifier sees of an image, as shares of its width and height."""
    tall, wide = float(height), float(width)
    if isinstance(transform.resize, int):
        factor = transform.resize / min(height, width)
        tall, wide = height * factor, width * factor
    elif transform.resize is not None:
        tall, wide = map(float, transform.resize)
    crop = (tall, wide) if transform.crop is None else transform.crop
    high, broad = (crop, crop) if isinstance(crop, int) else crop
    left, top = (1 - broad / wide) / 2, (1 - high / tall) / 2
    return [round(one, 4) for one in (left, top, 1 - left, 1 - top)]
