"""gradosr score: every image of an archive to a row of a results folder."""

import json
from dataclasses import asdict

import click

from .cli import DONE, FAILED, INCOMPLETE, Terminated, drained, job_flags, log_flags


@click.command()
@job_flags
@click.option("--dry-run", is_flag=True, help="Print what would be done; touch nothing.")
@log_flags
def score(
    config: str, overrides: tuple[str, ...], as_json: bool, dry_run: bool, log_interval: float, log_format: str
) -> int:
    """Score the archive of CONFIG into its output folder; the same command again finishes a run."""
    from gradosr.config import ScoreJob, load_job
    from gradosr.progress import Outcome
    from gradosr.run import finish, prepare
    from gradosr.telemetry import Notes, plan_report

    job = load_job(ScoreJob, config, overrides)
    plan = prepare(job)
    if dry_run:
        click.echo(json.dumps(plan.facts(), indent=2) if as_json else plan_report(plan.facts()))
        return DONE
    plan.claim()
    with Notes(interval=log_interval, as_json=log_format == "json") as notes:
        outcome = Outcome()
        if plan.pending:
            from gradosr.driver import Driver, check_local_uris, connected

            notes.step("starting Ray")
            with drained() as stop, connected(job.ray, job.runtime_env):
                check_local_uris(job, plan.pending[0])
                driver = Driver(job, plan.folder, plan.fingerprint, notes.progress, notes, stop)
                outcome = driver.run(plan.pending)
        summary = finish(plan, outcome)
        notes.summary(summary)
    if as_json:
        click.echo(json.dumps(asdict(summary)))
    if summary.interrupted:
        raise Terminated
    if summary.failed:
        return FAILED
    return INCOMPLETE if summary.exceeded else DONE
