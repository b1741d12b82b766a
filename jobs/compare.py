"""gradosr compare: report which images change sides between two runs over one archive, and which run is better."""

import json

import click

from .cli import PLACE, json_flag, set_option


@click.command()
@click.argument("before", type=PLACE)
@click.argument("after", type=PLACE)
@click.option("--out", type=PLACE, metavar="FILE.html", help="Page to write; it needs neither network nor server.")
@click.option("--images", is_flag=True, help="Show the images that change sides on the page, read from the archive.")
@set_option
@json_flag
def compare(before: str, after: str, out: str | None, images: bool, overrides: tuple[str, ...], as_json: bool) -> None:
    """Compare the results BEFORE and AFTER of the same archive, such as before and after `gradosr rescore`.

    AUROC and the share of unknown images found come from labels: those of `gradosr label`, else the archive's own.
    """
    from gradosr.config import StoreFields
    from gradosr.config.settings import load_settings
    from gradosr.errors import ConfigError
    from gradosr.results.about import read_about
    from gradosr.store import Store
    from gradosr.text import printable

    if images and out is None:
        raise ConfigError("--images: shown on the page only; name it with --out FILE.html")
    if out is not None and not out.endswith(".html"):
        raise ConfigError(f"--out {out}: expected a file name that ends with .html")
    fields = load_settings(StoreFields, "", "--set", overrides)
    store = Store(fields.store, fields.stores)
    for run in (before, after):
        read_about(store, run)
    from gradosr.comparison import compare as compare_runs
    from gradosr.comparison import page, picture_rows
    from gradosr.comparison.words import summary

    document = compare_runs(store, before, after)
    for note in document["notes"]:
        click.echo(f"gradosr: {printable(note)}", err=True)
    if out is not None:
        page.write(store, out, document, picture_rows(store, document) if images else None)
    click.echo(json.dumps(document) if as_json else summary(document))
