"""Things that a job names and that the nodes of a cluster would not find."""

from gradosr.config import ScoreJob
from gradosr.errors import ConfigError
from gradosr.store import BACKENDS, is_shared, scheme_of

_ALONE = {"machine": "a local path", "process": "in the memory of this process"}
"""Reasons why the nodes of a cluster do not see a URI, by Scheme.seen_from."""


def check_travel(job: ScoreJob) -> None:
    """Raise ConfigError, with all faults at once, for anything that a submitted job would miss on the nodes."""
    faults = _unseen(job)
    if "working_dir" in job.runtime_env:
        faults.append("runtime_env.working_dir: the config itself travels as that; list folders of code as py_modules")
    if faults:
        raise ConfigError("\n".join(faults))


def check_seen(job: ScoreJob) -> None:
    """Raise ConfigError, with all faults at once, for URIs that a machine other than this one does not see."""
    if faults := _unseen(job):
        raise ConfigError("\n".join(faults))


def _unseen(job: ScoreJob) -> list[str]:
    uris = {"bundle": job.bundle, "input.uri": job.input.uri, "output": job.output}
    if isinstance(job.input.label_names, str):
        uris["input.label_names"] = job.input.label_names
    if job.embedder is not None:
        found = {"embedder.weights": job.embedder.weights, "embedder.arch": job.embedder.folder}
        uris |= {name: uri for name, uri in found.items() if uri is not None}
    *schemes, last = (f"{name}://" for name, scheme in BACKENDS.items() if scheme.shared)
    seen = f"{', '.join(schemes)} and {last}"
    return [
        f"{field}: {uri} is {_ALONE[scheme_of(uri).seen_from]}; the nodes of a cluster see {seen} only"
        for field, uri in uris.items()
        if not is_shared(uri)
    ]
