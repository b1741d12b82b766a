"""A search for the things that a fit job names, before torch is imported and hours are spent."""

from functools import partial

from gradosr.archive.image import resolve_names
from gradosr.archive.shards import check_found
from gradosr.classifier.sources import check_code, read_config
from gradosr.config import FOLDER, FitJob, TransferSettings
from gradosr.run.attempts import Attempts
from gradosr.store import Store


def check_given(job: FitJob) -> None:
    """Raise ConfigError or InputError for what is missing, every fault at once."""
    store, settings = Store(job.store, job.stores), job.classifier
    attempt = Attempts(store)
    attempt(job.bundle, lambda: check_code(settings.arch))
    if settings.arch.startswith(FOLDER):
        folder = settings.arch.removeprefix(FOLDER)
        attempt(folder, lambda: read_config(store, folder))
    files = [settings.weights, job.detector.weights if isinstance(job.detector, TransferSettings) else None]
    for names in (settings.classes, job.input.label_names):
        if isinstance(names, str):
            attempt(names, partial(resolve_names, names, store))
    files += [job.held_out] if isinstance(job.held_out, str) else []
    for uri in filter(None, files):
        attempt(uri, partial(store.stat, uri))
    attempt(job.input.uri, lambda: check_found(job.input, store))
    if attempt.faults:
        raise attempt.fault()
