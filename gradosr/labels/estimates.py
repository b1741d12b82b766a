"""Estimates from labelled images that were chosen with known probabilities (drawing.py): no assumption but the draw.

A cell has images of which some were drawn by simple random sampling, or all were taken; it is a stratum of
`gradosr.audit.proportions.stratified`. Images that were handed out and got no verdict are taken to be like the others
of their cell.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from gradosr.audit.proportions import Stratum, stratified
from gradosr.labels.records import Place, Round


@dataclass(frozen=True)
class Cell:
    """Images of which some were drawn, all with the same probability."""

    images: int
    """Number of all its images."""
    drawn: tuple[str, ...]
    """Keys of the images that were handed out."""

    def labelled(self, keys: Collection[str]) -> list[str]:
        """Return the keys of its images that have a label."""
        return [key for key in self.drawn if key in keys]


def cells(rounds: Sequence[Round], keys: Collection[str], over: bool | None = None) -> list[Cell]:
    """Return the cells of the newest rounds that have labels, each with at least one label; `keys` have one.

    `over` restricts them to one side of the threshold. A cell without labels is joined with its neighbour in the order
    of scores; there is no cell if there is no label.
    """
    used = [made for made in rounds if any(image.key in keys for image in made.images)]
    if not used:
        return []
    frame = [made for made in rounds if made.frame == used[-1].frame and made.number <= used[-1].number]
    sides = (True, False) if over is None else (over,)
    found = _joined([cell for side in sides for cell in _joined(_cells(frame, side), keys)], keys)
    return [cell for cell in found if cell.labelled(keys)]


def _cells(frame: Sequence[Round], over: bool) -> list[Cell]:
    """Return the cells on one side of the threshold: known before, above t, and below it by strata."""
    images = [image for made in frame for image in made.images if image.over == over]
    lowest = max((image.order for made in frame for image in made.images if image.stratum is None), default=None)
    above = [image for image in images if lowest is not None and image.order <= lowest]
    below = [image for image in images if lowest is None or image.order > lowest]
    last, found = frame[-1], [_all(one for one in frame[0].before if one.over == over), _all(above)]
    new = {image.key for image in last.images}
    for number, stratum in enumerate(last.strata):
        if (number < 2) == over:
            drawn = [image for image in below if image.stratum == number]
            left = stratum.images + sum(1 for image in drawn if image.key not in new)
            found.append(Cell(left, tuple(image.key for image in drawn)))
    return [cell for cell in found if cell.images]


def _all(images: Iterable[Place]) -> Cell:
    keys = tuple(image.key for image in images)
    return Cell(len(keys), keys)


def _joined(found: Sequence[Cell], keys: Collection[str]) -> list[Cell]:
    """Join cells without labels with the one before, or the first ones with the one behind."""
    joined: list[Cell] = []
    for cell in found:
        if joined and not (cell.labelled(keys) and joined[-1].labelled(keys)):
            last = joined.pop()
            joined.append(Cell(last.images + cell.images, last.drawn + cell.drawn))
        else:
            joined.append(cell)
    return joined


def probabilities(rounds: Sequence[Round], keys: Collection[str]) -> dict[str, float]:
    """Return the probability with which each labelled image was chosen for labelling; none for the others."""
    return {
        key: len(labelled) / cell.images
        for cell in cells(rounds, keys)
        for labelled in [cell.labelled(keys)]
        for key in labelled
    }


def share(found: Sequence[Cell], unknown: Mapping[str, bool]) -> dict[str, Any] | None:
    """Return the share of unknown images in some cells, its 95 % interval, and the labels that it rests on.

    `unknown` is the verdict by key. None if there is nothing to count.
    """
    images = sum(cell.images for cell in found)
    if not images:
        return None
    verdicts = [[unknown[key] for key in cell.drawn if key in unknown] for cell in found]
    strata = [Stratum(cell.images, len(own), sum(own)) for cell, own in zip(found, verdicts, strict=True)]
    estimate, low, high = stratified(strata)
    labels = sum(one.drawn for one in strata)
    return {"estimate": estimate, "low": low, "high": high, "images": images, "labels": labels}


def figures(rounds: Sequence[Round], verdicts: pa.Table) -> dict[str, Any]:
    """Return the estimated share of unknown images in the table, and the precision of those over the threshold."""
    unknown = dict(zip(verdicts["key"].to_pylist(), verdicts["unknown"].to_pylist(), strict=True))
    return {
        "unknown_share": share(cells(rounds, unknown.keys()), unknown),
        "precision": share(cells(rounds, unknown.keys(), over=True), unknown),
    }
