"""gradosr explain: tell why images have their unknown scores, and where in them that shows."""

import json
from pathlib import Path

import click

from .cli import PLACE, Place, json_flag, set_option


@click.command()
@click.argument("bundle", type=PLACE)
@click.argument("images", type=PLACE, nargs=-1, required=True, metavar="IMAGE_OR_KEY...")
@click.option(
    "--run", type=PLACE, metavar="RESULTS", help="Results of `gradosr score`; the images are then keys of their rows."
)
@click.option("--out", type=Place(file_okay=False, path_type=Path), help="Folder for a page and pictures.")
@set_option
@json_flag
def explain(
    bundle: str, images: tuple[str, ...], run: str | None, out: Path | None, overrides: tuple[str, ...], as_json: bool
) -> None:
    """Tell why images have the unknown scores that BUNDLE gives them.

    Tells which parts of the score stand out from those of the held-out known images, which gradients lie beyond theirs,
    and draws a heat map. IMAGE_OR_KEY are files (paths or s3:// URIs) or, with --run, keys of a run.
    """
    from gradosr.audit import explained
    from gradosr.config import ExplainSettings
    from gradosr.config.settings import load_settings
    from gradosr.errors import InputError
    from gradosr.store import Store
    from gradosr.text import printable

    settings = load_settings(ExplainSettings, "", "--set", overrides)
    found = explained.explain(Store(settings.store, settings.stores), bundle, images, settings, run)
    if out is not None:
        explained.write(found, bundle, out)
    if as_json:
        click.echo(json.dumps([one.document() for one in found]))
    else:
        click.echo("\n".join(printable(line) for one in found for line in explained.told(one)))
    if faulty := [one for one in found if one.fault]:
        raise InputError(
            f"{len(faulty)} of {len(found)} images cannot be explained: {faulty[0].name}: {faulty[0].fault}"
        )
