"""gradosr compact: rewrite a finished run's table as a few large Parquet files."""

import json

import click

from .cli import PLACE, json_flag, set_option


@click.command()
@click.argument("results", type=PLACE)
@click.option("--out", type=PLACE, required=True, metavar="FOLDER", help="A new folder or s3:// prefix for the files.")
@click.option(
    "--size", default="256MB", show_default=True, help="Approximate maximum size of a file, in bytes, KB, MB or GB."
)
@set_option
@json_flag
def compact(results: str, out: str, size: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Write the rows of RESULTS, a finished run, to Parquet files of a given size in a new folder.

    The files are read back and compared with the original parts before success is reported. RESULTS is not changed.
    """
    from gradosr.config import StoreFields
    from gradosr.config.settings import load_settings
    from gradosr.results.about import read_about
    from gradosr.store import Store

    fields = load_settings(StoreFields, "", "--set", overrides)
    store = Store(fields.store, fields.stores)
    read_about(store, results)
    from gradosr.results.compacting import compact as compact_run
    from gradosr.results.compacting import parse_size
    from gradosr.text import plural

    manifest = compact_run(store, results, out, parse_size(size))
    parts, files = plural(len(manifest["parts"]), "part"), plural(len(manifest["files"]), "file")
    told = f"{plural(manifest['rows'], 'row')} of {parts} in {files}: {out}"
    facts = {name: manifest[name] for name in ("rows", "files", "checksums")}
    click.echo(json.dumps(facts) if as_json else told)
