"""gradosr extend: make a bundle that knows one class more."""

import json

import click

from .cli import PLACE, json_flag, labelled_runs, set_option
from .label import import_first, labels_option


@click.command()
@click.argument("bundle", type=PLACE)
@labelled_runs
@labels_option
@click.option("--class", "name", required=True, metavar="NAME", help="The new class, as labels name it.")
@click.option("--out", type=PLACE, required=True, metavar="FOLDER", help="Folder or s3:// prefix of the new bundle.")
@click.option(
    "--force", is_flag=True, help="Replace a bundle, and accept that known classes lose more than half a point."
)
@set_option
@json_flag
def extend(
    bundle: str, runs: tuple[str, ...], file: str | None, name: str, out: str, force: bool,
    overrides: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Write a bundle like BUNDLE whose classifier knows one class more, from labels of runs (`gradosr label`).

    The old rows of the last layer stay; the detector is fitted anew, to the images that BUNDLE was fitted with.
    """
    from gradosr.bundle.manifest import check_new, read_manifest
    from gradosr.config import ExtendSettings
    from gradosr.config.settings import load_settings
    from gradosr.errors import ConfigError
    from gradosr.results.about import read_about
    from gradosr.store import Store
    from gradosr.text import printable

    if bundle.rstrip("/") == out.rstrip("/"):
        raise ConfigError(f"--out {out}: the bundle to extend; name a folder of its own")
    settings = load_settings(ExtendSettings, "", "--set", overrides)
    store = Store(settings.store, settings.stores)
    read_manifest(store, bundle)
    if not force:
        check_new(store, out, ", or replace it with --force")
    for run in runs:
        read_about(store, run)
    if file:
        import_first(store, runs, file)
    from gradosr.fit.extending import extend as extend_bundle
    from gradosr.fit.extending import told
    from gradosr.run.console import Notes

    with Notes() as notes:
        extended, facts = extend_bundle(bundle, runs, name, out, settings, notes, force=force)
        extended.save(store, out)
        for line in told(facts):
            notes.say(printable(line))
    click.echo(json.dumps({"bundle": out, **facts}) if as_json else out)
