"""Scores a finished run again: parts in, parts out, from the signals in their rows. Without images and classifier.

B rows, S of them with signals, N values of a signal.
"""

import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from gradosr.archive.readers.parquet import unreadable
from gradosr.archive.shards import Shard
from gradosr.bundle.bundle import DetectorOnly, load_detector
from gradosr.config import Precision, ScoreJob
from gradosr.detectors import Observation
from gradosr.errors import InputError, ShardUnreadable
from gradosr.results.folder import RunFolder
from gradosr.results.outcome import PartStats, Underway
from gradosr.results.part import EMBEDDING, STAGES, PartBuilder, schema, stored_numbers
from gradosr.results.rescored import HOW, fingerprint_before
from gradosr.scoring.clock import Clock, rounded, timed
from gradosr.scoring.columns import NON_FINITE
from gradosr.store import Store
from gradosr.versions import software

ROWS = 2048
"""Rows scored at once: so few that their signals stay near the processor."""
_OF_FINITE = ("predicted_class", "predicted_index", "confidence", "max_logit", "energy")


class RescoringWorker:
    """Scores one part of a run at a time and publishes it under the same name in another run."""

    def __init__(self, job: ScoreJob, fingerprint: Mapping[str, Any], threads: int) -> None:
        self._job, self._fingerprint, self._threads = job, dict(fingerprint), threads
        self._before = fingerprint_before(fingerprint)
        self.name = f"{socket.gethostname()}:{os.getpid()}"

    def ready(self) -> str:
        """Load the detector and return the worker's name. Raises FingerprintMismatch, BundleError or StoreError."""
        torch.set_num_threads(self._threads)
        self._store = Store(self._job.store, self._job.stores)
        self._folder = RunFolder(self._store, self._job.output)
        self._folder.check(self._fingerprint)
        self._bundle = load_detector(self._store, self._job.bundle)
        return self.name

    def underway(self) -> dict[str, Underway]:
        """Return nothing: a part is scored again within seconds."""
        return {}

    def expect(self, shard: Shard) -> None:
        """Prefetch nothing: parts are read as they are scored."""

    def score(self, shard: Shard) -> Callable[[], PartStats]:
        """Score a part anew, and return the function that publishes it, to be called once and on any thread.

        Raises ShardUnreadable for a damaged part, InputError for one that is not of the run or lacks signals, and, as
        the returned function does, StoreError when the store failed and MachineFault when this machine did.
        """
        seconds = dict.fromkeys(STAGES, 0.0)
        with opened(self._store, shard) as before:
            if before.footer("fingerprint") != self._before:
                raise InputError(f"{shard.uri}: scored with other settings than run.json tells; {HOW}")
            part = PartBuilder(replace(shard, name=before.shard), before.schema)
            try:
                for rows in timed(before.rows(), seconds, "read"):
                    with Clock(seconds, "score"):
                        scored = rescored(shard, rows, self._bundle, self._fingerprint["precision"])
                    with Clock(seconds, "write"):
                        part.add(scored)
            except BaseException:
                part.close()
                raise
            kept = {name: before.footer(name) for name in ("shard", "passed_over")}
        return partial(self._publish, shard.part, part, seconds, kept)

    def _publish(self, name: str, part: PartBuilder, seconds: dict[str, float], kept: Mapping[str, Any]) -> PartStats:
        """Encode and put a part whose rows are complete; `kept` are the entries of its footer that stay."""
        try:
            with Clock(seconds, "write"):
                part.flush()
                if bad_images := part.bad_images():
                    self._folder.put_bad_images(name, bad_images)
            footer = {
                **{f"gradosr.{entry}": value for entry, value in kept.items()},
                "gradosr.fingerprint": self._fingerprint,
                "gradosr.seconds": rounded(seconds),
                "gradosr.worker": self.name,
                "gradosr.software": software(),
            }
            with Clock(seconds, "write"):  # again: the footer cannot tell how long its own PUT took
                self._folder.put_part(name, part.finish(footer))
        finally:
            part.close()
        return PartStats(dict(part.counts), rounded(seconds), kept["passed_over"])


@dataclass
class Before:
    """A part that is open to be scored again."""

    uri: str
    file: pq.ParquetFile
    shard: str
    """Name of the shard that the part was made from, as in its rows; "" if it has none."""

    @property
    def schema(self) -> pa.Schema:
        """The part's columns."""
        return self.file.schema_arrow.remove_metadata()

    def footer(self, name: str) -> Any:
        """Return one of the JSON values in the footer; {} if it is absent."""
        return json.loads((self.file.metadata.metadata or {}).get(f"gradosr.{name}".encode(), b"{}"))

    def rows(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows, a few at a time. Raises ShardUnreadable."""
        with unreadable(self.uri, "damaged"):
            yield from self.file.iter_batches(ROWS, use_threads=False)


@contextmanager
def opened(store: Store, part: Shard) -> Iterator[Before]:
    """Open a part. Raises ShardUnreadable if it is damaged, or lacks a column."""
    with store.open(part.stored) as body:
        with unreadable(part.uri, "damaged"):
            file = pq.ParquetFile(body, pre_buffer=False)
            if missing := [name for name in schema().names if name not in file.schema_arrow.names]:
                raise ShardUnreadable(f"{part.uri}: lacks the columns {', '.join(missing)}")
            first = next(file.iter_batches(1, columns=["shard"], use_threads=False), None)
        yield Before(part.uri, file, str(first["shard"][0]) if first else "")


def rescored(part: Shard, rows: pa.RecordBatch, bundle: DetectorOnly, precision: Precision) -> pa.RecordBatch:
    """Return the rows with the scores of a bundle. Raises InputError for rows whose scores have no signals beside them.

    A row whose score is not a finite number becomes one of status non_finite, as in any other run.
    """
    has_signals_B = rows["status"].to_numpy(zero_copy_only=False) == "ok"
    score_B = np.full(rows.num_rows, np.nan, np.float32)
    if has_signals_B.any():
        seen = rows if has_signals_B.all() else rows.filter(pa.array(has_signals_B))
        missing = seen["logits"].null_count if "logits" in signal_columns(seen.schema) else seen.num_rows
        if missing:
            raise InputError(f"{part.uri}: {missing} scored images without stored signals; {HOW}")
        score_B[has_signals_B] = bundle.detector.score(observation_of(seen)).numpy()
    finite_B = np.isfinite(score_B)
    predicted_B = rows["predicted_index"].fill_null(-1).to_numpy()
    p_value_B = bundle.calibrations[precision].p_values(score_B, predicted_B)
    unknown_B = pa.array(p_value_B <= bundle.manifest.false_alarm_rate, mask=~finite_B)
    columns = dict(zip(rows.schema.names, rows.columns, strict=True))
    columns |= {
        "unknown_score": pa.array(score_B, mask=~finite_B),
        "p_value": pa.array(p_value_B, mask=~finite_B),
        "is_unknown": unknown_B,
        "open_set_class": pc.if_else(unknown_B, "unknown", rows["predicted_class"]),
    }
    if (lost_B := has_signals_B & ~finite_B).any():
        columns |= _without_scores(rows, pa.array(lost_B))
    return pa.RecordBatch.from_pydict(columns)


def _without_scores(rows: pa.RecordBatch, lost_B: pa.Array) -> dict[str, pa.Array]:
    """Return the columns to replace where a score is not a finite number."""
    told = {"status": "non_finite", "error": NON_FINITE, **dict.fromkeys(_OF_FINITE)}
    return {name: pc.if_else(lost_B, pa.scalar(value, rows[name].type), rows[name]) for name, value in told.items()}


def signal_columns(columns: pa.Schema) -> list[str]:
    """Return the names of the columns that hold signals."""
    lists = [one for one in columns if pa.types.is_list(one.type) or pa.types.is_fixed_size_list(one.type)]
    return [one.name for one in lists if pa.types.is_float16(one.type.value_type) and one.name != EMBEDDING]


def observation_of(seen: pa.RecordBatch) -> Observation:
    """Return what was seen of images whose signals are stored, [S]; their predicted classes are those of the table."""
    names = signal_columns(seen.schema)
    signals = {name: torch.from_numpy(stored_numbers(seen[name]).astype(np.float32)) for name in names}
    predicted_S = torch.from_numpy(seen["predicted_index"].to_numpy().astype(np.int64))
    return Observation.from_signals(signals).taken_for(predicted_S)
