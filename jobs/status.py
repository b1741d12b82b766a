"""gradosr status: report the state of runs."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from .cli import PLACE, address_option, json_flag, set_option

if TYPE_CHECKING:
    from gradosr.results.status import RunStatus
    from gradosr.run.submission import SubmittedJob


@click.command()
@click.argument("target", type=PLACE, required=False, metavar="[RUN_URI | JOB]")
@address_option
@set_option
@json_flag
def status(target: str | None, address: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Report the state of a run: done, missing, failed, quarantined, images/s, ETA.

    For RUN_URI, a results folder, no cluster is contacted (--set store.KEY=VALUE configures access to s3://). For JOB,
    a job's id, its state on the cluster is printed first. Without either, list all jobs that the cluster remembers.
    """
    if target is None:
        _list_jobs(address, as_json=as_json)
    elif target.startswith("gradosr-") and "/" not in target:
        _tell_job(target, address, overrides, as_json=as_json)
    else:
        run = _run_status(target, "", overrides)
        from gradosr.results.status import status_report

        click.echo(json.dumps(run.facts()) if as_json else status_report(run))


def _list_jobs(address: str | None, *, as_json: bool) -> None:
    from gradosr.run.submission import Cluster
    from gradosr.text import printable

    jobs = Cluster(address).jobs()
    if as_json:
        click.echo(json.dumps({"jobs": [job.facts() for job in jobs]}))
    for job in jobs if not as_json else ():
        click.echo(printable(f"{job.id}  {job.state:9}  {job.submitted_at}  {job.name}  {job.output}"))


def _tell_job(name: str, address: str | None, overrides: Sequence[str], *, as_json: bool) -> None:
    from gradosr.run.submission import Cluster

    job = Cluster(address).job(name)
    run = run_of(job, overrides)
    if as_json:
        click.echo(json.dumps({"job": job.facts(), "run": run.facts() if run else None}))
    else:
        click.echo(job_report(job, run))


def run_of(job: "SubmittedJob", overrides: Sequence[str]) -> "RunStatus | None":
    """Return the state of the job's run; if its results folder has none, print the reason and return None."""
    from gradosr.errors import InputError
    from gradosr.text import printable

    try:
        return _run_status(job.output, job.store, overrides)
    except InputError as error:
        click.echo(f"gradosr: {printable(str(error))}", err=True)
        return None


def job_report(job: "SubmittedJob", run: "RunStatus | None") -> str:
    """Format a job and its run for people."""
    from gradosr.results.status import status_report
    from gradosr.text import printable

    code = "" if job.exit_code is None else f", exit code {job.exit_code}"
    lines = [
        printable(f"{job.id}  {job.state}{code}  {job.submitted_at}  {job.name}"),
        *([printable(job.message)] if job.message else []),
        *([status_report(run)] if run else []),
    ]
    return "\n".join(lines)


def _run_status(uri: str, store: str, overrides: Sequence[str]) -> "RunStatus":
    from gradosr.config import StoreFields
    from gradosr.config.settings import load_settings
    from gradosr.results.about import read_about
    from gradosr.store import Store

    fields = load_settings(StoreFields, store, "--set", overrides)
    reached = Store(fields.store, fields.stores)
    read_about(reached, uri)
    from gradosr.results.status import read_status

    return read_status(reached, uri)
