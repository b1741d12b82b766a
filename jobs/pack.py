"""gradosr pack: pack single images or Parquet rows into WebDataset tar shards."""

import json

import click

from .cli import json_flag, set_option


@click.command()
@click.argument("source")
@click.argument("target")
@set_option
@json_flag
def pack(source: str, target: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Pack the images of SOURCE into tar shards below TARGET.

    SOURCE is a folder of images (an image's folder is its label) or, with --set input.kind=parquet, Parquet files.
    Other settings are changed the same way: --set images_per_shard=N, --set input.label_column=NAME.
    """
    from gradosr.archive.packing import pack_shards
    from gradosr.config import pack_job
    from gradosr.run.console import Notes

    with Notes() as notes:
        packed = pack_shards(pack_job(source, target, overrides), notes.step)
    click.echo(json.dumps(packed) if as_json else f"{packed['images']} images in {packed['shards']} shards: {target}")
