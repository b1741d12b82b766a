"""gradosr evaluate: measure how well unknown images are found, from a run's rows or by a protocol."""

import json
from collections.abc import Mapping, Sequence

import click

from .cli import PLACE, json_flag, set_option


@click.command()
@click.argument("target", type=PLACE)
@click.option("--known", default="", help="Known classes, comma-separated; default: the bundle's.")
@click.option(
    "--protocol", type=click.Choice(["osr"]), help="TARGET is a config of detectors and classifiers to compare."
)
@click.option(
    "--out", type=PLACE, metavar="DIR", help="Write roc.svg and risk-coverage.svg into this folder or s3:// prefix."
)
@set_option
@json_flag
def evaluate(
    target: str, known: str, protocol: str | None, out: str | None, overrides: tuple[str, ...], as_json: bool
) -> None:
    """Measure the scores in TARGET (a results folder or s3:// prefix) against the labels in it.

    Prints the metrics beside those of cheap scores, false alarms and images found by class, and a recommendation.

    With --protocol osr, TARGET is a config: every detector is fitted to every classifier, on known classes only, and
    tables (after each task), plots and all scores are written. The same command again continues where it stopped.
    """
    if protocol and out:
        raise click.UsageError("--out is for a results folder; a protocol's `output` says where its plots go")
    if protocol:
        _compare(target, overrides, as_json)
    else:
        _measure(target, [name.strip() for name in known.split(",") if name.strip()], out, overrides, as_json)


def _measure(target: str, known: Sequence[str], out: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    from gradosr.config import EvaluateSettings
    from gradosr.config.settings import load_settings
    from gradosr.results.about import read_about
    from gradosr.store import Store, join

    settings = load_settings(EvaluateSettings, "", "--set", overrides)
    store = Store(settings.store, settings.stores)
    about = read_about(store, target)
    from gradosr.lab.evaluation.advice import signals_of
    from gradosr.lab.evaluation.evaluation import evaluate_rows
    from gradosr.lab.evaluation.rows import read_rows
    from gradosr.lab.evaluation.summary import table

    if out is not None:
        from gradosr.lab.evaluation.plots import curves  # fails before the rows are read
    signals, why = signals_of(store, about, settings.bundle)
    rows = read_rows(store, target, known)
    if out is not None:
        for name, body in curves(rows).items():
            store.write(join(out, name), body)
    evaluation = evaluate_rows(rows, signals)
    _note("" if rows.finished else "this run is not finished: measured on the parts there are")
    _note("" if rows.both else "no labelled image is unknown: figures that need both kinds are left out")
    _note(why and f"what the detector costs is not known: {why}")
    click.echo(json.dumps(evaluation.facts()) if as_json else table(evaluation))


def _note(text: str) -> None:
    from gradosr.text import printable

    if text:
        click.echo(f"gradosr: {printable(text)}", err=True)


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
