"""A search for the things that a score job names, before anything heavy is imported; plan.py looks again, at more."""

from functools import partial

from gradosr.archive.image import resolve_names
from gradosr.archive.shards import check_found
from gradosr.bundle.manifest import read_manifest
from gradosr.classifier.sources import check_code, read_config
from gradosr.config import EmbedderSettings, ResultsInput, ScoreJob, Serving
from gradosr.errors import NotFound
from gradosr.results.about import read_about
from gradosr.run.attempts import Attempts
from gradosr.store import Store, join, scheme_of


def check_given(job: Serving) -> None:
    """Raise ConfigError or InputError for what is missing, every fault at once.

    Of an archive elsewhere only the plan asks: its listing has begun by then. Code is looked for where the workers are
    processes of this machine.
    """
    store = Store(job.store, job.stores)
    attempt = Attempts(store)
    attempt(job.bundle, lambda: read_manifest(store, job.bundle))
    if isinstance(job, ScoreJob):
        source = job.input
        attempt(job.output, lambda: _look(store, job.output))
        attempt(source.uri, lambda: resolve_names(source.label_names, store))
        if isinstance(source, ResultsInput):
            attempt(source.uri, lambda: read_about(store, source.uri))
        elif scheme_of(source.uri).seen_from == "machine":
            attempt(source.uri, lambda: check_found(source, store))
        if job.embedder is not None:
            _look_for(job.embedder, store, attempt)
    if not isinstance(job, ScoreJob) or (job.ray.address == "local" and not job.runtime_env):
        for arch in job.trust:
            attempt(job.bundle, partial(check_code, arch))
    if attempt.faults:
        raise attempt.fault()


def check_embedder(job: ScoreJob) -> None:
    """Load the second network of a job, if it has one and the workers will be processes of this machine.

    Raises ConfigError, ClassifierError or StoreError.
    """
    if job.embedder is None or job.ray.address != "local" or job.runtime_env:
        return
    import torch  # which takes seconds, and which nothing else here needs

    from gradosr.scoring.compute import Compute
    from gradosr.scoring.embedder import load_embedder

    load_embedder(job, Store(job.store, job.stores), Compute(torch.device("cpu")))


def _look_for(embedder: EmbedderSettings, store: Store, attempt: Attempts) -> None:
    """Look for the files of a second network."""
    if (folder := embedder.folder) is not None:
        attempt(folder, lambda: read_config(store, folder))
    if (weights := embedder.weights) is not None:
        attempt(weights, lambda: store.stat(weights))


def _look(store: Store, output: str) -> None:
    """Raise StoreError for an output that cannot be listed; a folder that is not there yet is no fault."""
    try:
        next(iter(store.list(join(output, "run.json"))), None)
    except NotFound:
        if scheme_of(output).buckets:
            raise
