"""gradosr score: score every image of an archive into a row of a results folder."""

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .cli import (
    DONE,
    FAILED,
    INCOMPLETE,
    LOG_INTERVAL,
    PLACE,
    Terminated,
    drained,
    json_flag,
    log_flags,
    print_config,
    print_config_option,
    set_option,
)

if TYPE_CHECKING:
    from gradosr.config import ScoreJob
    from gradosr.results.outcome import Outcome, Progress
    from gradosr.run.console import Notes
    from gradosr.run.plan import Plan

T = TypeVar("T")


@click.command()
@click.argument("target", metavar="CONFIG|BUNDLE", type=PLACE)
@click.argument("images", type=PLACE, required=False)
@click.option(
    "--out", type=PLACE, metavar="RESULTS", help="Results folder or s3:// prefix; required for BUNDLE IMAGES."
)
@click.option("--workers", metavar="N", type=click.IntRange(min=1), help="Number of workers. Default: all there is.")
@click.option(
    "--trust", multiple=True, metavar="NAME", help="Code (package.module:factory) that BUNDLE may import; repeatable."
)
@click.option(
    "--dry-run", is_flag=True, help="Report what would be done and about how long it would take; change nothing."
)
@print_config_option
@set_option
@json_flag
@log_flags
def score(
    target: str, images: str | None, out: str | None, workers: int | None, trust: tuple[str, ...], dry_run: bool,
    print_only: bool, overrides: tuple[str, ...], as_json: bool, log_interval: float, log_format: str,
) -> int:  # fmt: skip
    """Score an archive into a results folder; running the same command again completes a run.

    The job is a config file, flags that change it, or a bundle and the IMAGES that it scores: a folder, tar or Parquet
    files, or a pattern.

    gradosr score CONFIG

    gradosr score BUNDLE IMAGES --out RESULTS
    """
    from gradosr.run.from_flags import score_job

    job = score_job(target, images, {"output": out, "workers": workers, "trust": trust}, overrides)
    if print_only:
        print_config(job)
        return DONE
    return carry_out(job, as_json=as_json, dry_run=dry_run, interval=log_interval, log_format=log_format)


def carry_out(
    job: "ScoreJob", *, as_json: bool, dry_run: bool, interval: float = LOG_INTERVAL, log_format: str = "text"
) -> int:
    """Run or plan a job, report it, and return the exit code."""
    from gradosr.run.preflight import check_given

    check_given(job)
    from gradosr.results.outcome import Outcome
    from gradosr.run.console import Notes, plan_report
    from gradosr.run.plan import finish, prepare

    plan = prepare(job)
    if dry_run:
        facts = plan.facts() | {"estimate": sampled(plan) if plan.pending else None}
        click.echo(json.dumps(facts, indent=2) if as_json else plan_report(facts))
        return DONE
    with Notes(interval=interval, as_json=log_format == "json") as notes:
        summary = run(plan, notes, finish) if plan.pending else finish(plan, Outcome())
        notes.summary(summary)
    if as_json:
        click.echo(json.dumps(asdict(summary)))
    if summary.interrupted:
        raise Terminated
    if summary.failed:
        return FAILED
    return INCOMPLETE if summary.exceeded else DONE


def sampled(plan: "Plan") -> "dict[str, Any] | None":
    """Estimate time and cost of the run by scoring a sample on this machine.

    If that is impossible, print the reason on stderr and return None.
    """
    click.echo("gradosr: loading torch and scoring a sample, to estimate time and cost", err=True)
    from gradosr.errors import ConfigError
    from gradosr.run.estimate import estimate

    try:
        if found := estimate(plan):
            return asdict(found)
        reason = "no image in the sample"
    except ConfigError as error:  # about a device that only the workers have
        reason = str(error)
    click.echo(f"gradosr: no estimate: {reason}", err=True)
    return None


def run(plan: "Plan", notes: "Notes", close: "Callable[[Plan, Outcome], T]") -> T:
    """Score the pending shards and close the run, holding the lease on the folder."""
    from gradosr.results.lease import Lease
    from gradosr.results.outcome import Outcome, Progress
    from gradosr.run.driver import Driver, check_local_uris, connected
    from gradosr.run.plan import prepare
    from gradosr.run.preflight import check_embedder
    from gradosr.store import Store

    job, latest = plan.job, [Progress(len(plan.pending))]
    if plan.pending:
        check_embedder(job)

    def facts() -> dict[str, float]:
        return {"archive_shards": len(plan.shards), **latest[0].facts()}

    def observe(progress: "Progress") -> None:
        latest[0] = progress
        lease.check()
        notes.progress(progress)

    with Lease(Store(job.store, job.stores), job.output, facts, notes.say) as lease, drained() as stop:
        if lease.waited:  # meanwhile the other driver has made progress or finished
            plan = prepare(job)
        if not plan.pending:
            return close(plan, Outcome())
        plan.claim()
        notes.step("starting Ray")
        with connected(job.ray, job.runtime_env):
            check_local_uris(job, plan.pending[0])
            outcome = Driver(job, plan.folder, plan.fingerprint, observe, notes, stop).run(plan.pending)
        return close(plan, outcome)
