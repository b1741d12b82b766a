"""gradosr submit: run a config as a job of a Ray cluster."""

import json
from functools import partial
from pathlib import Path

import click

from .cli import DONE, INTERRUPTED, address_option, job_flags
from .logs import say


@click.command()
@job_flags
@address_option
@click.option("--name", help="Name shown beside the job's id; default: the config's file name.")
@click.option("--wait", is_flag=True, help="Follow the job's log on stderr and exit with the job's exit code.")
def submit(
    config: str, overrides: tuple[str, ...], as_json: bool, address: str | None, name: str | None, wait: bool
) -> int:
    """Run `gradosr score CONFIG` on a Ray cluster; the same command again continues after an attempt that ended.

    Prints the job's id. Exits with 7 while the same run is active there.
    """
    from gradosr.config import ScoreJob, load_job
    from gradosr.run.travel import check_travel
    from gradosr.text import printable

    job = load_job(ScoreJob, config, overrides)
    check_travel(job)
    from gradosr.run.plan import check
    from gradosr.run.submission import Cluster

    bundle = check(job)["bundle"]
    cluster = Cluster(address)
    submitted = cluster.submit(job, bundle, name or Path(config).stem)
    there = f"{submitted.id} --address {cluster.address}"
    click.echo(f"gradosr: `gradosr logs -f {there}` follows it, `gradosr cancel {there}` ends it", err=True)
    if wait:
        try:
            submitted = cluster.follow(submitted.id, partial(say, err=True))
        except KeyboardInterrupt:  # stops only this command; the job continues
            return INTERRUPTED
    if submitted.exit_code:
        click.echo(f"gradosr: {submitted.id} {submitted.state}: {printable(submitted.message)}", err=True)
    click.echo(json.dumps(submitted.facts()) if as_json else submitted.id)
    return submitted.exit_code or DONE
