"""Benchmark of an audit of generated results, a tenth of whose rows are unknown."""

import json
import multiprocessing
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gradosr.audit import audit
from gradosr.bundle.calibration import Calibration
from gradosr.config import AuditSettings
from gradosr.lab.benchmark.driver import peak_bytes
from gradosr.results.part import ROW_GROUP, SCHEMA_VERSION, schema, wide_column
from gradosr.store import Store

CLASSES = tuple(f"class {number}" for number in range(10))
CALIBRATION_IMAGES = 20_000
UNKNOWN = 0.1
FEATURES = 64
PART_ROWS = 10_000


def bench_audit(rows: int, folder: Path) -> dict[str, Any]:
    """Measure seconds and peak memory of an audit of `rows` rows below `folder`.

    A separate process writes the rows.
    """
    results, out = folder / "results", folder / "out"
    out.mkdir()
    start = time.perf_counter()
    writer = multiprocessing.get_context("spawn").Process(target=write_results, args=(results, rows))
    writer.start()
    writer.join()
    written, start = time.perf_counter() - start, time.perf_counter()
    document = audit(Store(), str(results), AuditSettings(), out=out)
    return {
        "rows": document["rows"],
        "parts": document["results"]["parts"],
        "bytes": sum(path.stat().st_size for path in (results / "parts").iterdir()),
        "written_seconds": written,
        "audit_seconds": time.perf_counter() - start,
        "flagged": document["flags"]["count"],
        "estimate": document["prevalence"]["estimate"],
        "groups": len(document["groups"]["items"]),
        "peak_bytes": peak_bytes(),
    }


def audit_table(facts: Mapping[str, Any]) -> str:
    """Format one line per figure."""
    peak = facts["peak_bytes"]
    rows = [
        ("writing the results", f"{facts['written_seconds']:.1f} s, {facts['bytes'] / 1e6:,.0f} MB"),
        ("audit", f"{facts['audit_seconds']:.1f} s, {facts['rows'] / facts['audit_seconds']:,.0f} rows/s"),
        ("peak memory", "-" if peak is None else f"{peak / 1e6:,.0f} MB"),
        ("unknown", f"{facts['estimate']:.3f} (made: {UNKNOWN:g})"),
        ("flagged", f"{facts['flagged']:,}"),
        ("clusters", f"{facts['groups']}"),
    ]
    head = f"{facts['rows']:,} rows in {facts['parts']:,} parts"
    return "\n".join([head, *(f"{name:28}{figure}" for name, figure in rows)])


def write_results(folder: Path, rows: int) -> None:
    """Write a finished results folder of tar shards by day, with features for rows over the threshold."""
    (folder / "parts").mkdir(parents=True)
    rng = np.random.default_rng(0)
    calibration = Calibration.of(rng.normal(size=CALIBRATION_IMAGES), 0.05)
    counts, edges = calibration.histogram()
    recorded = {"images": CALIBRATION_IMAGES, "edges": edges.tolist(), "counts": counts.tolist()}
    fingerprint = {"schema_version": SCHEMA_VERSION, "bundle": "0" * 64, "input": {"kind": "tar", "uri": "/archive/"}}
    about = {"classes": CLASSES, "false_alarm_rate": 0.05, "calibration": recorded}
    run = {"schema_version": SCHEMA_VERSION, "fingerprint": fingerprint, **about}
    (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    columns = schema(["features"]).with_metadata({"gradosr.fingerprint": json.dumps(fingerprint)})
    names = []
    for number, start in enumerate(range(0, rows, PART_ROWS)):
        table = _part(rng, calibration, number, min(PART_ROWS, rows - start), columns)
        names.append(f"part-{number:07}")
        pq.write_table(table, folder / "parts" / f"{names[-1]}.parquet", compression="zstd", row_group_size=ROW_GROUP)
    (folder / "_SUCCESS").write_text(json.dumps({"parts": names}), encoding="utf-8")


def _part(rng: np.random.Generator, calibration: Calibration, number: int, rows: int, columns: pa.Schema) -> pa.Table:
    """Return the table of one part.

    Known images have normally distributed scores, and unknown ones score five higher; the features of unknown images
    form three clusters.
    """
    shard = f"2026/{1 + number // 28 % 12:02}/{1 + number % 28:02}/{number:07}.tar"
    made_unknown = rng.random(rows) < UNKNOWN
    scores = (rng.normal(size=rows) + 5 * made_unknown).astype(np.float32)
    p_values = calibration.p_values(scores)
    unknown = p_values <= 0.05
    index = rng.integers(0, len(CLASSES), rows).astype(np.int32)
    classes = pa.array(CLASSES).take(pa.array(index))
    place = np.arange(rows, dtype=np.int32)
    member = pc.utf8_lpad(pa.array(place).cast(pa.string()), 7, "0")
    values: dict[str, Any] = {
        "key": pc.binary_join_element_wise(f"{shard}#folder/", member, ".jpg", ""),
        "shard": pa.repeat(shard, rows),
        "row": place,
        "status": pa.repeat("ok", rows),
        "width": np.full(rows, 640, np.int32),
        "height": np.full(rows, 480, np.int32),
        "predicted_class": classes,
        "predicted_index": index,
        "confidence": rng.random(rows, np.float32),
        "max_logit": -scores,
        "energy": scores,
        "unknown_score": scores,
        "p_value": p_values,
        "is_unknown": unknown,
        "open_set_class": pc.if_else(pa.array(unknown), "unknown", classes),
        "features": _features(rng, unknown, made_unknown),
    }
    arrays = [pa.array(values[f.name], f.type) if f.name in values else pa.nulls(rows, f.type) for f in columns]
    return pa.Table.from_arrays(arrays, schema=columns)


def _features(rng: np.random.Generator, unknown: np.ndarray, made_unknown: np.ndarray) -> pa.Array:
    centre = np.where(made_unknown, rng.integers(0, 3, len(unknown)), 3)
    values = rng.normal(size=(len(unknown), FEATURES)) + 8 * np.eye(4, FEATURES)[centre]
    return wide_column(values.astype(np.float16), unknown)
