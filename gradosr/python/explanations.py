"""Explanations of images in Python: the words and figures of `gradosr explain`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

import torch

from gradosr.archive.loading import PreparedImage
from gradosr.audit.explained import NOT_FINITE, Explained, overlaid, told
from gradosr.audit.explaining import facts_of, seen_box
from gradosr.audit.listing import of_what
from gradosr.explanation import Explainer
from gradosr.python.pictures import SHOWN, harmless, picture, shown
from gradosr.text import plural, printable

if TYPE_CHECKING:
    import pandas as pd

SIDE = 160
"""Longer side of a picture, in pixels."""
_WHOLE = (0, 0, 1, 1)
_FACTS = ("is_unknown", "unknown_score", "p_value", "predicted_class", "confidence")


def explained(explainer: Explainer, batch: Sequence[PreparedImage]) -> list[Explained]:
    """Explain a batch of images, in order; the picture of each is what the classifier sees of it."""
    transform = explainer.bundle.manifest.transform
    pixels = [image.pixels for image in batch if image.pixels is not None]
    reasons, found = iter(explainer(torch.stack(pixels)) if pixels else ()), list[Explained]()
    for image in batch:
        key = image.encoded.key
        if image.pixels is None or image.width is None or image.height is None:
            fault = f"{image.fault.status}: {image.fault.error}" if image.fault else "unreadable"
            found.append(Explained(key, fault=fault))
        elif (why := next(reasons)) is None:
            found.append(Explained(key, fault=NOT_FINITE))
        else:
            facts = facts_of(why, seen_box(transform, image.height, image.width))
            found.append(Explained(key, facts, picture=picture(image.pixels, SIDE)))
    return found


class Explanations(Sequence[dict[str, Any]]):
    """Images with the reasons for their unknown scores, in order; printed, they are what `gradosr explain` prints."""

    def __init__(self, found: Sequence[Explained]) -> None:
        self._found = found

    def __len__(self) -> int:
        return len(self._found)

    @overload
    def __getitem__(self, place: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, place: slice) -> "Explanations": ...
    def __getitem__(self, place: int | slice) -> "dict[str, Any] | Explanations":
        """Return an explanation as `gradosr explain --json` has it, or those of a slice."""
        return Explanations(self._found[place]) if isinstance(place, slice) else self._found[place].document()

    def to_pandas(self) -> "pd.DataFrame":
        """Return a data frame of pandas, which must be installed: a row per image, a column per part of the score."""
        import pandas as pd

        return pd.DataFrame([_row(one) for one in self], columns=None if self._found else ["image", *_FACTS])

    def __str__(self) -> str:
        return "\n".join(printable(line) for one in self._found for line in told(one))

    def __repr__(self) -> str:
        return f"<gradosr.Explanations {self._summary()}>"

    def _summary(self) -> str:
        over = sum(bool(one.facts and one.facts["is_unknown"]) for one in self._found)
        without = sum(one.facts is None for one in self._found)
        missing = f", {without:,} without an explanation" if without else ""
        return f"{plural(len(self), 'image')}, {over:,} over the threshold{missing}"

    def _repr_html_(self) -> str:
        """Return the images of the highest unknown scores as HTML, each with its heat map and the reasons."""
        highest = sorted(range(len(self)), key=lambda place: -_score(self._found[place]))[:SHOWN]
        rows = "".join(f"<tr>{_cells(self._found[place])}</tr>" for place in sorted(highest))
        which = "; the highest scores" if len(self) > SHOWN else ""
        return f"<p>{self._summary()}{which}:</p><table>{rows}</table>"


def _score(one: Explained) -> float:
    return one.facts["unknown_score"] if one.facts else float("-inf")


def _row(document: dict[str, Any]) -> dict[str, Any]:
    """Return an explanation as a row of a data frame."""
    row = {"image": document["image"], **{name: document.get(name) for name in _FACTS}}
    parts = {part["name"]: part["value"] for part in document.get("parts", ())}
    return row | parts | {"said": "\n".join(document.get("said", ())), "error": document.get("error")}


def _cells(one: Explained) -> str:
    """Return the cells of a row: the picture, the same with the heat map laid over it, and the reasons."""
    name, *lines = told(one)
    words = f"<strong>{harmless(name)}</strong>" + "".join(f"<br>{harmless(line.strip(), 1000)}" for line in lines)
    if one.facts is None or one.picture is None:
        return f'<td></td><td></td><td style="text-align: left">{words}</td>'
    heat, pictures = one.facts["heat_map"], f"<td>{shown(one.picture)}</td><td></td>"
    if heat:
        over = shown(overlaid(one.picture, {**heat, "box": _WHOLE}))
        pictures = f"<td>{shown(one.picture)}</td><td>{over}</td>"
        words += f"<br><small>Heat map: {harmless(of_what(heat), 1000)}</small>"
    return f'{pictures}<td style="text-align: left">{words}</td>'
