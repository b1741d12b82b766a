"""A run of little pictures with names as hostile as they come, scored by nobody: its scores are drawn."""

import io
import json
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from audit_document import HOSTILE, drawing
from made_runs import calibration, rows, write_run
from pyarrow import parquet

from gradosr.archive.shards import Shard
from gradosr.store import Store

SHARD = "a.tar"


class Scored(NamedTuple):
    uri: str
    keys: list[str]
    """In the order of the table; the second half is unknown, of two kinds."""


def make_run(root: Path, images: int = 80, features: int = 8) -> Scored:
    rng = np.random.default_rng(3)
    half = images // 2
    names = [HOSTILE[place] if place < 2 else f"{place:05}.jpg" for place in range(half)]
    names += [f"{place:05}.jpg" for place in range(half, images - 4)] + [*HOSTILE[2:4], *HOSTILE[6:8]]
    archive = root / "archive"
    archive.mkdir(parents=True)
    with tarfile.open(archive / SHARD, "w") as file:
        for place, name in enumerate(names):
            body = drawing(("digits", "rings")[place % 2], place, 72)
            member = tarfile.TarInfo(name)
            member.size = len(body)
            file.addfile(member, io.BytesIO(body))
    stored = Store().stat(str(archive / SHARD))
    scores = np.concatenate([rng.normal(size=half), rng.normal(4, 1, size=images - half)])
    kinds = np.eye(2, features)[np.arange(images) % 2] * 8
    features_NF = (kinds + rng.normal(size=(images, features)) * 0.3).astype(np.float16)
    made = rows(SHARD, scores, calibration(), names=names, features=features_NF)
    for row in made:
        row["width"] = row["height"] = None
    part = Shard(SHARD, stored.uri, stored.version, stored.size).part
    uri = write_run(root / "run", {part: made}, calibration(), width=features)
    about = json.loads((root / "run" / "run.json").read_text())
    about["fingerprint"]["input"]["uri"] = f"{archive}/"
    (root / "run" / "run.json").write_text(json.dumps(about))
    path = root / "run" / "parts" / f"{part}.parquet"
    table = parquet.read_table(path).replace_schema_metadata({"gradosr.fingerprint": json.dumps(about["fingerprint"])})
    parquet.write_table(table, path, row_group_size=30)
    return Scored(uri, [row["key"] for row in made])
