"""gradosr check: report how a classifier was understood, before hours are spent on it."""

import json

import click

from .cli import PLACE, json_flag, set_option


@click.command()
@click.argument("target", type=PLACE, metavar="BUNDLE|CONFIG")
@set_option
@json_flag
def check(target: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Load a bundle (folder or s3:// prefix), or the classifier of a fit or score CONFIG, and run one batch."""
    from gradosr.config import FitJob, check_job
    from gradosr.fit.preflight import check_given as check_given_fit
    from gradosr.run.preflight import check_given

    job = check_job(target, overrides)
    if isinstance(job, FitJob):
        check_given_fit(job)
    else:
        check_given(job)
    from gradosr.fit.inspection import check_bundle, check_fit, report
    from gradosr.run.console import Notes

    with Notes() as notes:
        notes.step("running a batch")
        found = check_fit(job, notes) if isinstance(job, FitJob) else check_bundle(job)
    click.echo(json.dumps(found.facts()) if as_json else report(found))
