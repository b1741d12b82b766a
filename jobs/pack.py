"""gradosr pack: pack single images or Parquet rows into WebDataset tar shards."""

import json

import click

from .cli import PLACE, json_flag, set_option


@click.command()
@click.argument("source", type=PLACE)
@click.argument("target", type=PLACE)
@set_option
@json_flag
def pack(source: str, target: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Pack the images of SOURCE into tar shards below TARGET.

    SOURCE is a folder of images (an image's folder is its label) or, with --set input.kind=parquet, Parquet files.
    Other settings are changed the same way: --set images_per_shard=N, --set input.label_column=NAME.
    """
    from gradosr.archive.shards import check_empty, check_found
    from gradosr.config import pack_job
    from gradosr.store import Store

    job = pack_job(source, target, overrides)
    store = Store(job.store, job.stores)
    check_found(job.input, store)
    check_empty(job.output, store)
    from gradosr.archive.packing import pack_shards
    from gradosr.run.console import Notes
    from gradosr.text import plural

    with Notes() as notes:
        packed = pack_shards(job, notes.step)
    told = f"{plural(packed['images'], 'image')} in {plural(packed['shards'], 'shard')}: {target}"
    click.echo(json.dumps(packed) if as_json else told)
