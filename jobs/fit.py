"""gradosr fit: make a bundle from a classifier and known images."""

import json

import click

from .cli import job_flags


@click.command()
@job_flags
def fit(config: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Fit the unknown detector of CONFIG (and train its classifier, if requested) and save the bundle."""
    from gradosr.config import FitJob, load_job
    from gradosr.fit.fitting import fit as fit_bundle
    from gradosr.fit.fitting import record_job
    from gradosr.run.console import Notes
    from gradosr.store import Store

    job = load_job(FitJob, config, overrides)
    store = Store(job.store, job.stores)
    record_job(store, job)
    with Notes() as notes:
        bundle = fit_bundle(job, notes)
        bundle.save(store, job.bundle)
        notes.say(f"bundle written to {job.bundle}")
    facts = {"bundle": job.bundle, **bundle.facts()}
    click.echo(json.dumps(facts) if as_json else job.bundle)
