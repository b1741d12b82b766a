"""A job as a plain Ray Data pipeline: read, score with the same scorer in a pool of actors, write Parquet."""

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
from gradosr.store import is_shared

IMAGE = "image"
FINISHED = "finished"  # column with the time at which the row's batch was scored


@dataclass(frozen=True)
class Setting:
    """The tuned values of the pipeline."""

    batch_size: int
    actors: int
    threads: int
    """Threads of each actor; the total is the same for any number of actors."""

    def __str__(self) -> str:
        return f"batch {self.batch_size}, {self.actors} x {self.threads} threads"


@contextmanager
def ray_session() -> Iterator[None]:
    """Start a local Ray with an object store of Ray's default size, in which Ray Data keeps its blocks.

    Raise InputError if Ray Data is not installed.
    """
    try:
        import ray.data
    except ImportError as error:
        raise InputError("the Ray Data peer needs pandas: pip install 'gradosr[data]'; or --no-peer") from error
    # "local": a cluster that runs on this machine is not the one to measure on.
    ray.init("local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.use_datasource_v2 = False  # it combines small files into one block and ignores override_num_blocks
    try:
        yield
    finally:
        ray.shutdown()


def settings(batch_size: int, workers: int, threads: int) -> list[Setting]:
    """Return the settings to try: two batch sizes for each size of the actor pool.

    There are as many actors as workers, and twice and half as many with the same total number of threads.
    """
    pools = [(workers, threads)]
    pools += [(2 * workers, threads // 2)] if threads > 1 else []
    pools += [(workers // 2, 2 * threads)] if workers > 1 else []
    return [Setting(batch, *pool) for pool in pools for batch in (batch_size, 4 * batch_size)]


class _Scorer(BatchScorer):
    """A scorer that records when each batch was scored."""

    def __call__(self, batch: Batch) -> Batch:
        """Score the batch and add a column with the time, in seconds since the epoch."""
        out: Batch = super().__call__(batch)
        return {**out, FINISHED: np.full(len(out["status"]), time.time())}


def peer_rate(job: ScoreJob, output: str, setting: Setting, shards: int, skip: float) -> float:
    """Return images per second from when the share `skip` is scored until the last image is.

    Writing after that is not counted.
    """
    files, place = _files(job, output)
    column = job.input.image_column if isinstance(job.input, ParquetInput) else IMAGE
    scored = _read(job, files, shards).map_batches(
        _Scorer,
        fn_constructor_args=(job.bundle, column, job.device, job.precision),
        fn_constructor_kwargs={"threads": setting.threads, "trust": job.trust, "store": job.store},
        batch_size=setting.batch_size,
        compute=ray.data.ActorPoolStrategy(size=setting.actors),
        # Half of Ray's cores are left for reading and writing: requesting all of them would starve both.
        num_cpus=ray.cluster_resources()["CPU"] / 2 / setting.actors,
        num_gpus=ray.cluster_resources().get("GPU", 0) / setting.actors if job.device != "cpu" else 0,
    )
    scored.write_parquet(place, filesystem=files)
    finished = np.sort(pq.read_table(place, filesystem=files, columns=[FINISHED])[FINISHED].to_numpy())
    start, end = finished[int(skip * len(finished))], finished[-1]
    return float((finished > start).sum() / (end - start)) if end > start else 0.0


def _read(job: ScoreJob, files: fs.FileSystem, shards: int) -> "ray.data.Dataset":
    """Read the archive in as many blocks as there are shards.

    Otherwise small files would form one block, and all actors but one would be idle.
    """
    place, options = _place(job.input.uri), {"filesystem": files, "override_num_blocks": shards}
    if isinstance(job.input, ParquetInput):
        return ray.data.read_parquet(place, columns=[job.input.image_column], **options)
    return ray.data.read_webdataset(place, decoder=_sample, **options)


def _sample(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return key and image of a WebDataset sample."""
    image = next((data for suffix, data in sample.items() if f".{suffix.lower()}" in IMAGE_SUFFIXES), None)
    return {"key": sample["__key__"], IMAGE: image}


def _files(job: ScoreJob, output: str) -> tuple[fs.FileSystem, str]:
    """Return Arrow's file system for the job's store, and the path of `output` in it."""
    if not is_shared(output):
        return fs.LocalFileSystem(), _place(output)
    server = urlsplit(job.store.endpoint_url or "")
    return fs.S3FileSystem(endpoint_override=server.netloc, scheme=server.scheme, region="us-east-1"), _place(output)


def _place(uri: str) -> str:
    return uri.removeprefix("s3://").removeprefix("file://").rstrip("/")
