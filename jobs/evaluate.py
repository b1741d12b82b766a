"""gradosr evaluate: measure how well unknown images are found, from a run's rows or by a protocol."""

import json
from collections.abc import Mapping

import click

from .cli import json_flag, set_option


@click.command()
@click.argument("target")
@click.option("--known", default="", help="Known classes, comma-separated; default: the bundle's.")
@click.option(
    "--protocol", type=click.Choice(["osr"]), help="TARGET is a config of detectors and classifiers to compare."
)
@set_option
@json_flag
def evaluate(target: str, known: str, protocol: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Measure the scores in TARGET (a results folder or s3:// prefix) against the labels in it.

    With --protocol osr, TARGET is a config: every detector is fitted to every classifier, on known classes only, and
    tables (after each task), plots and all scores are written. The same command again continues where it stopped.
    """
    if protocol:
        _compare(target, overrides, as_json)
        return
    from gradosr.config import StoreFields
    from gradosr.config.settings import load_settings
    from gradosr.results.about import read_about
    from gradosr.store import Store

    fields = load_settings(StoreFields, "", "--set", overrides)
    store = Store(fields.store, fields.stores)
    read_about(store, target)
    from gradosr.lab.evaluation.rows import evaluate_run, table

    names = tuple(name.strip() for name in known.split(",") if name.strip())
    evaluation = evaluate_run(store, target, names)
    if not evaluation.finished:
        click.echo("gradosr: this run is not finished: measured on the parts there are", err=True)
    click.echo(json.dumps(evaluation.facts()) if as_json else table(evaluation))


def _compare(config: str, overrides: tuple[str, ...], as_json: bool) -> None:
    from gradosr.config import OsrProtocol, load_job
    from gradosr.fit.preflight import check_given

    protocol = load_job(OsrProtocol, config, overrides)
    for task in map(protocol.with_recipe, protocol.tasks):
        check_given(protocol.fit_job(task, next(iter(protocol.detectors.values()))))
    from gradosr.lab.evaluation.plots import plots
    from gradosr.lab.evaluation.protocol import run_protocol
    from gradosr.lab.evaluation.tables import document, markdown, measure
    from gradosr.run.console import Notes
    from gradosr.store import Store, join

    store = Store(protocol.store, protocol.stores)

    def write(files: Mapping[str, bytes]) -> None:
        for name, body in files.items():
            store.write(join(protocol.output, name), body)

    with Notes() as notes:
        scores, tasks = [], []
        for one in run_protocol(protocol, notes):
            scores.append(one)
            tasks.append(measure(protocol, one))
            tables, facts = markdown(protocol, tasks), document(protocol, tasks)
            write({"tables.md": tables.encode(), "results.json": json.dumps(facts, indent=2).encode()})
        write(plots(protocol, scores))
        notes.say(f"tables, plots and scores written to {protocol.output}")
    click.echo(json.dumps(facts) if as_json else tables)
