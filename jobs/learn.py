"""gradosr learn: make a bundle whose detector has learned from labels."""

import json

import click

from .cli import PLACE, json_flag, labelled_runs, set_option
from .label import import_first, labels_option


@click.command()
@click.argument("bundle", type=PLACE)
@labelled_runs
@labels_option
@click.option("--out", type=PLACE, required=True, metavar="FOLDER", help="Folder or s3:// prefix of the new bundle.")
@set_option
@json_flag
def learn(
    bundle: str, runs: tuple[str, ...], file: str | None, out: str, overrides: tuple[str, ...], as_json: bool
) -> None:
    """Write a bundle like BUNDLE whose detector has learned from the labels of runs (`gradosr label`).

    The classifier stays as it is, and so do the images that calibrate: p-values mean the same afterwards.
    """
    from gradosr.bundle.manifest import check_new, read_manifest
    from gradosr.config import StoreFields
    from gradosr.config.settings import load_settings
    from gradosr.errors import ConfigError
    from gradosr.results.about import read_about
    from gradosr.store import Store

    if bundle.rstrip("/") == out.rstrip("/"):
        raise ConfigError(f"--out {out}: the bundle to learn from; name a folder of its own")
    fields = load_settings(StoreFields, "", "--set", overrides)
    store = Store(fields.store, fields.stores)
    read_manifest(store, bundle)
    check_new(store, out)
    for run in runs:
        read_about(store, run)
    if file:
        import_first(store, runs, file)
    from gradosr.fit.learning import learn as learn_labels

    facts = learn_labels(store, bundle, runs, out)
    if facts["penalty"] is None:
        click.echo("gradosr: these labels do not agree on anything new yet: scores stay in their order", err=True)
    told = f"learned from {facts['labels']} labelled images, {facts['unknown']} of them unknown"
    if facts["without_signals"]:
        told += f"; {facts['without_signals']} more have no stored signals"
    click.echo(f"gradosr: {told}", err=True)
    click.echo(json.dumps(facts) if as_json else out)
