"""gradosr screen: report what is new in an archive since the last night, and whether someone should look at it."""

import json
from functools import partial
from typing import TYPE_CHECKING

import click

from .cli import DONE, FAILED, TRIPPED, Terminated, job_flags, log_flags, print_config, print_config_option
from .score import run

if TYPE_CHECKING:
    from gradosr.audit.nights import Night
    from gradosr.config import ScreenJob
    from gradosr.run.console import Notes
    from gradosr.run.plan import Plan
    from gradosr.store import Store


@click.command()
@job_flags
@log_flags
@print_config_option
def screen(
    config: str, overrides: tuple[str, ...], as_json: bool, log_interval: float, log_format: str, print_only: bool
) -> int:
    """Score what is new in the archive of CONFIG, audit it, and exit with 6 if a gate trips."""
    from gradosr.config import ScreenJob, load_job
    from gradosr.run.preflight import check_given

    job = load_job(ScreenJob, config, overrides)
    if print_only:
        print_config(job)
        return DONE
    check_given(job)
    from gradosr.audit import screening
    from gradosr.audit.nights import History
    from gradosr.errors import RunFailed
    from gradosr.run.console import Notes
    from gradosr.run.plan import prepare
    from gradosr.store import Store

    screening.check(job)
    plan, store = prepare(job), Store(job.store, job.stores)
    history = History(store, plan.folder)
    with Notes(interval=log_interval, as_json=log_format == "json") as notes:
        labels = partial(_labels, store, plan, job, notes)
        summary, night = run(plan, notes, lambda plan, outcome: screening.close(job, plan, outcome, history, labels()))
        notes.summary(summary)
        if summary.interrupted:
            raise Terminated
        if night:
            _tell(night, history.path("index.html"), notes)
            if as_json:
                click.echo(json.dumps(night.document()))
        done = DONE if night else FAILED  # no night: shards failed, and the next screening covers what was scored
        try:
            screening.tell_all(job, history)  # earlier nights, too
        except RunFailed as error:
            notes.warn(str(error))
            done = FAILED
    return TRIPPED if night and night.tripped else done


def _labels(store: "Store", plan: "Plan", job: "ScreenJob", notes: "Notes") -> dict[str, str]:
    """Return what labels of earlier nights say that images show, by key, if some names are dismissed."""
    from gradosr.labels import UNKNOWN, read_labels, verdicts

    if not job.dismissed:
        return {}
    said = verdicts(read_labels(store, job.output), plan.manifest.classes)
    found = dict(zip(said["key"].to_pylist(), said["label"].to_pylist(), strict=True))
    named = set(found.values())
    if unused := [name for name in job.dismissed if name not in named]:
        there = f"; labels are {', '.join(sorted(named)[:10])}" if named else ""
        notes.say(f"dismissed: no image of {job.output} is labelled {', '.join(unused)}{there}")
    # `unknown` agrees with any name.
    return {key: label for key, label in found.items() if label in job.dismissed or label != UNKNOWN}


def _tell(night: "Night", page: str, notes: "Notes") -> None:
    """Say how much of a night is unknown, and which gates tripped."""
    from gradosr.audit import night_words

    told = night_words.share(night.document()) if night.counts.images else "no new image"
    notes.say(f"night {night.night}: {told}; {page}")
    if warning := night_words.watched(night.document()):
        notes.warn(warning)
    for verdict in night.tripped:
        notes.warn(f"gate {verdict.gate} tripped: {verdict.why}")
