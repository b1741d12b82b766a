"""Explanations of images that somebody names: files, or images of a run by their keys; as text, as data, and as a page.

index.html     every image with its heat map, the reasons in words and as bars
ID.png         the image with the heat map laid over it
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pydantic import TypeAdapter
from torch import Tensor

from gradosr.archive.decode import decode, to_input_size
from gradosr.audit import listing, text
from gradosr.audit.explaining import BATCH, facts_of, seen_box
from gradosr.audit.flagged import check_folder, written
from gradosr.audit.pictures import LARGER, MAX_PIXELS, REASONS, fetch
from gradosr.audit.report import render_page
from gradosr.audit.rows import RunTable, find, id_of
from gradosr.config import ComputeSettings, ExplainSettings, Input
from gradosr.errors import InputError
from gradosr.explanation import Explainer
from gradosr.scoring.columns import NON_FINITE
from gradosr.store import Store

_INPUT: TypeAdapter[Input] = TypeAdapter(Input)
NOT_FINITE = f"non_finite: {NON_FINITE}"


@dataclass(frozen=True)
class Explained:
    """An image, and why it has its score; or why nobody can tell."""

    name: str
    facts: Mapping[str, Any] | None = None
    fault: str | None = None
    """The reason that the image cannot be explained."""
    picture: Image.Image | None = None

    def document(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"image": self.name, **(self.facts or {}), **({"error": self.fault} if self.fault else {})}


def explain(
    store: Store, bundle: str, names: Sequence[str], settings: ExplainSettings, run: str | None = None
) -> list[Explained]:
    """Explain images by the bundle at a URI: files, or the images with these keys in the results at `run`.

    An image that cannot be read has a fault. Raises InputError for keys that the run does not have.
    """
    explainer = Explainer.load(store, bundle, settings.trust, ComputeSettings(device=settings.device))
    names, transform = list(dict.fromkeys(names)), explainer.bundle.manifest.transform
    pixels, faults = _of_run(store, run, names) if run else _of_files(store, names)
    readable, found = [name for name in names if name in pixels], dict[str, Explained]()
    for start in range(0, len(readable), BATCH):
        some = readable[start : start + BATCH]
        inputs = torch.stack([to_input_size(pixels[name], transform) for name in some])
        for name, explanation in zip(some, explainer(inputs), strict=True):
            if explanation is None:
                found[name] = Explained(name, fault=NOT_FINITE)
                continue
            box = seen_box(transform, *pixels[name].shape[1:])
            picture = Image.fromarray(pixels[name].permute(1, 2, 0).contiguous().numpy())
            picture.thumbnail((LARGER, LARGER))
            found[name] = Explained(name, facts_of(explanation, box), picture=picture)
    return [found.get(name) or Explained(name, fault=faults.get(name, "unreadable")) for name in names]


def _of_files(store: Store, names: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    pixels: dict[str, Tensor] = {}
    faults: dict[str, str] = {}
    for name in names:
        decoded = decode(store.read(name), MAX_PIXELS)
        if decoded.pixels is not None:
            pixels[name] = decoded.pixels
        elif decoded.fault:
            faults[name] = f"{decoded.fault.status}: {decoded.fault.error}"
    return pixels, faults


def _of_run(store: Store, run: str, keys: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    table, pixels = RunTable(store, run), dict[str, Tensor]()
    shards = find(table, keys)
    if missing := [key for key in keys if key not in shards]:
        raise InputError(f"{run}: has no image {', '.join(text.shortened(key) for key in missing[:3])}")
    rows = [{"id": id_of(key), "key": key, "shard": shards[key]} for key in keys]
    names, source = {row["id"]: row["key"] for row in rows}, _INPUT.validate_python(table.fingerprint["input"])

    def see(row_id: str, seen: Tensor) -> None:
        pixels[names[row_id]] = seen

    shown = fetch(store, source, rows, table.parts, limit=len(rows), see=see)
    faults = {names[row_id]: f"{REASONS[one.kind]}: {one.reason}" for row_id, one in shown.by_id.items() if one.kind}
    return pixels, faults


def told(found: Explained) -> list[str]:
    """Return an explanation in lines for a terminal."""
    if found.facts is None:
        return [f"{found.name}", f"  cannot be explained: {found.fault}"]
    facts = found.facts
    verdict = "over the threshold" if facts["is_unknown"] else "under the threshold"
    score = f"unknown score {facts['unknown_score']:.3f}, p-value {text.p_value(facts['p_value'])}"
    taken = f"taken for {facts['predicted_class']} ({facts['confidence']:.0%} sure)"
    return [found.name, f"  {verdict}: {score}; {taken}", *(f"  {line}" for line in facts["said"])]


def write(found: Sequence[Explained], bundle: str, out: Path) -> None:
    """Write the page and the pictures into a folder. Raises StoreError if that cannot be written."""
    check_folder(out)
    with written(out):
        for one in found:
            if one.picture and one.facts:
                overlaid(one.picture, one.facts["heat_map"]).save(out / f"{id_of(one.name)}.png")
        (out / "index.html").write_text(render(found, bundle), encoding="utf-8")


def render(found: Sequence[Explained], bundle: str) -> str:
    """Render the page."""
    return render_page("explain.html", ["audit.css"], [], bundle=bundle, found=[_shown(one) for one in found])


def _shown(one: Explained) -> dict[str, Any]:
    facts, picture = one.facts, one.picture
    if facts is None or picture is None:
        return {"name": one.name, "fault": one.fault, "facts": None}
    body = io.BytesIO()
    picture.save(body, "JPEG", quality=88)
    heat, (width, height) = facts["heat_map"], picture.size
    left, top, right, bottom = heat["box"] if heat else (0, 0, 0, 0)
    return {
        "name": one.name,
        "fault": None,
        "facts": facts,
        "picture": f"data:image/jpeg;base64,{base64.b64encode(body.getvalue()).decode()}",
        "size": picture.size,
        "heat": listing.heat_picture(heat) if heat else None,
        "of": listing.of_what(heat) if heat else "",
        "box": [left * width, top * height, (right - left) * width, (bottom - top) * height],
        "bars": listing.bars(facts),
    }


def overlaid(picture: Image.Image, heat: Mapping[str, Any] | None) -> Image.Image:
    """Return a picture with a heat map, if there is one, laid over the box that it is of."""
    if heat is None:
        return picture
    (width, height), (left, top, right, bottom) = picture.size, heat["box"]
    size = (max(1, round((right - left) * width)), max(1, round((bottom - top) * height)))
    layer = Image.new("RGBA", picture.size)
    heated = listing.heat_image(heat).resize(size, Image.Resampling.BICUBIC)
    layer.paste(heated, (round(left * width), round(top * height)))
    return Image.alpha_composite(picture.convert("RGBA"), layer)
