"""gradosr init: write a config to start from."""

import json
from pathlib import Path

import click

from .cli import PLACE, Place, set_option


@click.command()
@click.argument("kind", required=False, type=click.Choice(["fit", "score", "screen"]))
@click.argument("places", type=PLACE, nargs=-1, metavar="[PLACE]...")
@click.option("--out", type=Place(dir_okay=False, path_type=Path), help="File to write.  [default: KIND.yaml]")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@set_option
def init(kind: str | None, places: tuple[str, ...], out: Path | None, force: bool, overrides: tuple[str, ...]) -> None:
    """Write a config with comments, filled from what lies at each PLACE (default: in this folder); nothing is asked.

    Looked for are images (a folder of class folders, tar or Parquet files), a file of weights and a bundle. A JSON
    Schema is written beside the config, by which editors complete and check it.
    """
    from gradosr.archive.kinds import store_of
    from gradosr.config.schema import schema_of
    from gradosr.errors import ConfigError
    from gradosr.fit.starting import look, text_of

    store = store_of(overrides)
    found = look(places, store)
    kind = kind or ("score" if found.bundle else "fit")
    out = out or Path(f"{kind}.yaml")
    if out.exists() and not force:
        raise ConfigError(f"{out}: is there already; name another file with --out, or replace it with --force")
    text = text_of(kind, found, store)
    out.with_name(f"{kind}.schema.json").write_text(json.dumps(schema_of(kind), indent=2), encoding="utf-8")
    out.write_text(text, encoding="utf-8")
    click.echo(out)
