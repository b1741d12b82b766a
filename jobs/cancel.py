"""gradosr cancel: end a submitted job so that it can be resumed."""

import json

import click

from .cli import address_option, json_flag
from .status import job_report, run_of


@click.command()
@click.argument("job")
@address_option
@json_flag
def cancel(job: str, address: str | None, as_json: bool) -> None:
    """Ask JOB to end, wait for it, and report the remaining work.

    Shards that are being scored get `drain_timeout` seconds to finish. The same `gradosr submit` continues from there.
    """
    from gradosr.run.submission import Cluster

    ended = Cluster(address).stop(job)
    run = run_of(ended, ())
    if as_json:
        click.echo(json.dumps({"job": ended.facts(), "run": run.facts() if run else None}))
        return
    click.echo(job_report(ended, run))
    if ended.state == "STOPPED":
        click.echo("gradosr: the same `gradosr submit` goes on from here", err=True)
