"""The same job as a plain Ray Data pipeline: read, score by the same scorer in a pool of actors, write Parquet."""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow.parquet as pq
import ray
from pyarrow import fs

from gradosr.archive.shards import IMAGE_SUFFIXES
from gradosr.config import ParquetInput, ScoreJob
from gradosr.errors import InputError
from gradosr.scoring.ray_data import Batch, BatchScorer
from gradosr.store import is_s3

IMAGE = "image"
FINISHED = "finished"  # a column: when the row's batch was scored


@dataclass(frozen=True)
class Setting:
    """What is tuned of the pipeline."""

    batch_size: int
    actors: int
    threads: int
    """Of each actor; the same in all, whatever the number of actors."""

    def __str__(self) -> str:
        return f"batch {self.batch_size}, {self.actors} x {self.threads} threads"


@contextmanager
def ray_session() -> Iterator[None]:
    """A local Ray with an object store of Ray's own default size, in which Ray Data keeps its blocks.

    Raises InputError where there is no Ray Data.
    """
    try:
        import ray.data
    except ImportError as error:
        raise InputError("the Ray Data peer needs pandas: pip install 'gradosr[data]'; or --no-peer") from error
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.use_datasource_v2 = False  # it makes one block of small files, whatever override_num_blocks says
    try:
        yield
    finally:
        ray.shutdown()


def settings(batch_size: int, workers: int, threads: int) -> list[Setting]:
    """The grid: two batch sizes; as many actors as workers and, of the same threads in all, twice and half as many."""
    pools = [(workers, threads)]
    pools += [(2 * workers, threads // 2)] if threads > 1 else []
    pools += [(workers // 2, 2 * threads)] if workers > 1 else []
    return [Setting(batch, *pool) for pool in pools for batch in (batch_size, 4 * batch_size)]


class _Scorer(BatchScorer):
    """Notes when a batch was scored."""

    def __call__(self, batch: Batch) -> Batch:
        """With one more column, in seconds since the epoch."""
        out = super().__call__(batch)
        return {**out, FINISHED: np.full(len(out["status"]), time.time())}


def peer_rate(job: ScoreJob, output: str, setting: Setting, shards: int, skip: float) -> float:
    """Images per second from when the share `skip` is scored until the last one is, whose writing is not counted."""
    files, place = _files(job, output)
    column = job.input.image_column if isinstance(job.input, ParquetInput) else IMAGE
    scored = _read(job, files, shards).map_batches(
        _Scorer,
        fn_constructor_args=(job.bundle, column, job.device, job.precision),
        fn_constructor_kwargs={"threads": setting.threads, "trust": job.trust, "store": job.store},
        batch_size=setting.batch_size,
        compute=ray.data.ActorPoolStrategy(size=setting.actors),
        # Half of what Ray counts as cores stays with reading and writing: asking for all of them would starve both.
        num_cpus=ray.cluster_resources()["CPU"] / 2 / setting.actors,
        num_gpus=ray.cluster_resources().get("GPU", 0) / setting.actors if job.device != "cpu" else 0,
    )
    scored.write_parquet(place, filesystem=files)
    finished = np.sort(pq.read_table(place, filesystem=files, columns=[FINISHED])[FINISHED].to_numpy())
    start, end = finished[int(skip * len(finished))], finished[-1]
    return float((finished > start).sum() / (end - start)) if end > start else 0.0


def _read(job: ScoreJob, files: fs.FileSystem, shards: int) -> "ray.data.Dataset":
    """In as many blocks as there are shards: small files would be one block, and all actors but one idle."""
    place, options = _place(job.input.uri), {"filesystem": files, "override_num_blocks": shards}
    if isinstance(job.input, ParquetInput):
        return ray.data.read_parquet(place, columns=[job.input.image_column], **options)
    return ray.data.read_webdataset(place, decoder=_sample, **options)


def _sample(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Key and image of a WebDataset sample."""
    image = next((data for suffix, data in sample.items() if f".{suffix.lower()}" in IMAGE_SUFFIXES), None)
    return {"key": sample["__key__"], IMAGE: image}


def _files(job: ScoreJob, output: str) -> tuple[fs.FileSystem, str]:
    """Arrow's file system for the job's store, and where `output` is in it."""
    if not is_s3(output):
        return fs.LocalFileSystem(), _place(output)
    server = urlsplit(job.store.endpoint_url or "")
    return fs.S3FileSystem(endpoint_override=server.netloc, scheme=server.scheme, region="us-east-1"), _place(output)


def _place(uri: str) -> str:
    return uri.removeprefix("s3://").removeprefix("file://").rstrip("/")
