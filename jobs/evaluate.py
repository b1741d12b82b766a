"""gradosr evaluate: how well unknown images were found, where labels tell."""

import json

import click

from .cli import json_flag, set_option


@click.command()
@click.argument("results")
@click.option("--known", default="", help="Known classes, comma-separated; default: the bundle's.")
@set_option
@json_flag
def evaluate(results: str, known: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Measure the scores in RESULTS (a folder or s3:// prefix) against the labels in it."""
    from gradosr.config import StoreFields
    from gradosr.evaluation import evaluate_run, table
    from gradosr.settings import load_settings
    from gradosr.store import Store

    fields = load_settings(StoreFields, "", "--set", overrides)
    names = tuple(name.strip() for name in known.split(",") if name.strip())
    evaluation = evaluate_run(Store(fields.store, fields.stores), results, names)
    if not evaluation.finished:
        click.echo("gradosr: this run is not finished: measured on the parts there are", err=True)
    click.echo(json.dumps(evaluation.facts()) if as_json else table(evaluation))
