"""Results folders made without a classifier: parts as a worker writes them, of scores whose truth is known."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gradosr.bundle.calibration import Calibration
from gradosr.results.part import schema

CLASSES = ("cat", "dog", "ship")
RATE = 0.05


def calibration(images: int = 999, seed: int = 0) -> Calibration:
    """Draw p-values of known images, which score normally."""
    return Calibration.of(np.random.default_rng(seed).normal(size=images), RATE)


def rows(
    shard: str,
    scores: Sequence[float] | np.ndarray,
    known: Calibration,
    *,
    names: Sequence[str] | None = None,
    kind: str = "tar",
    index: Sequence[int] | None = None,
    features: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """One shard's rows, all ok; features [N, F] are kept of those over the threshold."""
    scores = np.asarray(scores, np.float32)
    classes = np.arange(len(scores)) % len(CLASSES) if index is None else np.asarray(index)
    p_values = known.p_values(scores, classes)
    made = []
    for place, (score, p_value) in enumerate(zip(scores.tolist(), p_values.tolist(), strict=True)):
        name = f"{place:05}.jpg" if names is None else names[place]
        predicted = int(classes[place])
        unknown = bool(p_values[place] <= RATE)
        made.append(
            {
                "key": name if kind == "images" else f"{shard}#{name}",
                "shard": shard,
                "row": place,
                "status": "ok",
                "width": 32,
                "height": 24,
                "predicted_class": CLASSES[predicted],
                "predicted_index": predicted,
                "confidence": 0.5,
                "unknown_score": score,
                "p_value": p_value,
                "is_unknown": unknown,
                "features": features[place] if features is not None and unknown else None,
            }
        )
    return made


def bad(shard: str, place: int, name: str, status: str = "not_an_image", error: str = "no image") -> dict[str, Any]:
    """A row without a score."""
    return {"key": f"{shard}#{name}", "shard": shard, "row": place, "status": status, "error": error}


def write_run(
    folder: Path,
    parts: Mapping[str, Sequence[Mapping[str, Any]]],
    known: Calibration | None,
    *,
    finished: bool = True,
    kind: str = "tar",
    bundle: str = "b" * 64,
    width: int = 0,
    strangers: Sequence[str] = (),
    embedder: str = "",
) -> str:
    """Write the folder; `known` None is a run that does not record its calibration. Returns its URI.

    `strangers`: parts whose footers tell of another bundle; `embedder`: the second network, if the run had one.
    """
    fingerprint: dict[str, Any] = {"schema_version": 1, "bundle": bundle, "input": {"kind": kind, "uri": "/archive/"}}
    if embedder:
        fingerprint["embedder"] = {"arch": embedder}
    about: dict[str, Any] = {"classes": CLASSES}
    if known is not None:
        counts, edges = known.histogram()
        summary = {"images": len(known.scores), "edges": edges.tolist(), "counts": counts.tolist()}
        if known.kind == "per_class":
            summary["by_class"] = {CLASSES[k]: len(own) for k, own in known.by_class.items()}
        about |= {"false_alarm_rate": RATE, "calibration": summary}
    (folder / "parts").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"schema_version": 1, "fingerprint": fingerprint, **about}))
    for name, made in parts.items():
        footer = {**fingerprint, "bundle": "another"} if name in strangers else fingerprint
        wide = [*(["features"] if width else []), *(["embedding"] if embedder else [])]
        columns = schema(wide).with_metadata({"gradosr.fingerprint": json.dumps(footer)})
        arrays = [pa.array([row.get(f.name) for row in made], f.type) for f in columns]
        table = pa.Table.from_arrays(arrays, schema=columns)
        pq.write_table(table, folder / "parts" / f"{name}.parquet", row_group_size=500)
    if finished:
        (folder / "_SUCCESS").write_text(json.dumps({"parts": sorted(parts)}))
    return str(folder)
