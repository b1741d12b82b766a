"""The rows that the page lists, and the data that its script needs: keys, scores, explanations, the map's images."""

import base64
import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from gradosr.audit import charts, export, text
from gradosr.audit.pictures import Pictures

Document = Mapping[str, Any]
COLOURS = 10
"""Number of colours for clusters; further clusters share one more."""
_PART = {
    "max_logit": "Highest logit", "gradients": "Gradients", "scale": "Spread of features", "middle": "Middle layer",
    "beyond": "Far in the middle", "labels": "Labels", "score": "Score",
}  # fmt: skip


def groups_of(document: Document) -> list[dict[str, Any]]:
    """Return the clusters with a colour each, the places where they lie, and their nearest known images."""
    known = document.get("known_images") or {}
    return [
        {
            **group,
            "colour": min(number, COLOURS),
            "places": [("Prefixes", group["prefixes"]), ("Shards", group["shards"])],
            "known": [{"id": one, **known[one]} for one in group.get("nearest_known") or () if one in known],
        }
        for number, group in enumerate(document["groups"]["items"])
    ]


def look_alikes_of(document: Document) -> list[dict[str, Any]]:
    """Return the images over the threshold that are more like a known class than like each other, by class."""
    known = document.get("known_images") or {}
    return [
        {**one, "known": [{"id": name, **known[name]} for name in one.get("nearest_known") or () if name in known]}
        for one in document["groups"].get("look_alikes") or ()
    ]


def rows_of(document: Document) -> list[dict[str, Any]]:
    """Return every row shown on the page once, the lowest p-value first, each with its cluster.

    `tiled` tells whether its picture stands among its cluster's.
    """
    tiled = {
        row["id"]: (group["id"], row)
        for group in document["groups"]["items"]
        for row in (*group["typical"], *group["borderline"])
    } | {row["id"]: (None, row) for one in document["groups"].get("look_alikes") or () for row in one["typical"]}
    atlas = document.get("map") or {"ids": [], "groups": []}
    cluster_of = dict(zip(atlas["ids"], atlas["groups"], strict=True))
    cluster_of |= {row_id: cluster for row_id, (cluster, _) in tiled.items() if cluster}
    rows = {row["id"]: row for row in (*document["highest"], *(row for _, row in tiled.values()))}
    explained = (document.get("explained") or {}).get("items", {})
    return [
        {
            **row,
            "cluster": cluster_of.get(row["id"]),
            "tiled": row["id"] in tiled,
            "why": explained.get(row["id"], {}).get("short", ""),
        }
        for row in sorted(rows.values(), key=lambda row: (row["p_value"], -row["unknown_score"], row["key"]))
    ]


def data(document: Document, rows: Iterable[Mapping[str, Any]], pictures: Pictures) -> dict[str, Any]:
    """Return the data of the page's script."""
    explained = (document.get("explained") or {}).get("items", {})
    listed = [_row(row, explained.get(row["id"])) for row in rows]
    there = {row["id"] for row in listed}
    known = document.get("known_images") or {}
    return {
        "token": _token(document),
        "classes": document["classes"],
        "rows": listed + [row for row in _of_map(document) if row["id"] not in there],
        "near": document.get("nearest_known") or {},
        "known": {one: {"class": facts["class"], "picture": _known(pictures, one)} for one, facts in known.items()},
    }


def _token(document: Document) -> str:
    """Return what tells this run from every other in a browser's memory."""
    run = [document["results"]["uri"], document["results"]["fingerprint"]]
    return hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()[:16]


def _row(row: Mapping[str, Any], explained: Mapping[str, Any] | None) -> dict[str, Any]:
    size = f"{row['width']} \u00d7 {row['height']}" if row.get("width") and row.get("height") else None
    label = None if row.get("label") is None else text.shortened(row["label"])
    facts = {
        **_named(row["id"], row["key"], row["predicted_class"], row["cluster"]),
        "score": text.score(row["unknown_score"]),
        "p": text.p_value(row["p_value"]),
        "label": label,
        "size": size,
        **(_explained(explained) if explained else {}),
    }
    return {name: value for name, value in facts.items() if value is not None}


def _named(row_id: str, key: str, predicted: str | None, cluster: str | None) -> dict[str, Any]:
    """Return a row's names; `cell` and `shown` only where they differ from the key."""
    cell, shown = export.cell(key), text.neutral(key)
    return {
        "id": row_id,
        "key": key,
        "cell": None if cell == key else cell,
        "shown": None if shown == key else shown,
        "predicted": text.shortened(predicted or "nothing", 60),
        "cluster": cluster,
    }


def _of_map(document: Document) -> list[dict[str, Any]]:
    atlas = document.get("map")
    if not atlas:
        return []
    names = [document["classes"][place] for place in atlas["predicted"]]
    columns = zip(atlas["ids"], atlas["keys"], names, atlas["groups"], strict=True)
    return [{name: value for name, value in _named(*one).items() if value is not None} for one in columns]


def _explained(facts: Mapping[str, Any]) -> dict[str, Any]:
    heat = facts["heat_map"]
    return {
        "said": facts["said"],
        "parts": [_bar(one, _PART.get(one["name"], one["name"]), one["value"]) for one in facts["parts"]],
        "layers": [_bar(one, text.shortened(one["name"], 60), 2 * one["known_below"] - 1)
                   for one in facts["layers"] if one["known_below"] is not None],
        "heat": heat and {"picture": heat_picture(heat), "box": heat["box"], "of": of_what(heat)},
    }  # fmt: skip


def _bar(one: Mapping[str, Any], name: str, value: float) -> dict[str, Any]:
    below = one["known_below"]
    said = text.score(one["value"])
    if below is not None:
        said += f", above {text.percent(round(below, 4))} of known"
    return {"name": name, "value": round(value, 4), "shown": said, "loud": below is not None and below >= 0.95}


def of_what(heat: Mapping[str, Any]) -> str:
    """Return which parts of the score a heat map is of, and which it cannot show."""
    told = ", ".join(_PART.get(name, name).lower() for name in heat["of"])
    left = ", ".join(_PART.get(name, name).lower() for name in heat["without"])
    return f"red where the score comes from most. It is of {told}" + (f"; {left} have no place." if left else ".")


def bars(facts: Mapping[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return the titled bars of an explanation, each with its shape."""
    found = _explained(facts)
    most = max((abs(one["value"]) for one in found["parts"]), default=0.0) or 1.0
    titled = (("What adds to the score", "parts", most), ("Gradients, beside those of known images", "layers", 1.0))
    return [
        (title, [{**one, "shape": charts.bar(one["value"] / full, loud=one["loud"])} for one in found[name]])
        for title, name, full in titled
    ]


def heat_picture(heat: Mapping[str, Any]) -> str:
    """Return a heat map as the data URI of a picture to be laid over the image."""
    body = io.BytesIO()
    heat_image(heat).save(body, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(body.getvalue()).decode()}"


def heat_image(heat: Mapping[str, Any]) -> Image.Image:
    """Return a heat map in colours: clear, then yellow, then red."""
    values = np.frombuffer(base64.b64decode(heat["values"]), np.uint8).reshape(heat["side"], heat["side"])
    share = values.astype(np.float64) / 255
    green = 220 * np.clip(2 - 2 * share, 0, 1)
    colours = np.stack([np.full_like(share, 235), green, np.zeros_like(share), 190 * share], 2)
    return Image.fromarray(colours.round().astype(np.uint8))


def _known(pictures: Pictures, one: str) -> str | None:
    jpeg = getattr(pictures, "known", {}).get(one)
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}" if jpeg else None
