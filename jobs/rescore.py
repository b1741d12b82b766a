"""gradosr rescore: score a finished run again with another bundle, from the signals in its table."""

import click

from .cli import PLACE, json_flag, set_option
from .score import carry_out


@click.command()
@click.argument("results", type=PLACE)
@click.option(
    "--bundle",
    type=PLACE,
    required=True,
    metavar="BUNDLE",
    help="Bundle with the same classifier, as `learn` makes it.",
)
@click.option("--out", type=PLACE, required=True, metavar="OUTPUT", help="A new results folder or s3:// prefix.")
@set_option
@json_flag
@click.option("--dry-run", is_flag=True, help="Report what would be done and about how long it would take.")
def rescore(results: str, bundle: str, out: str, overrides: tuple[str, ...], as_json: bool, dry_run: bool) -> int:
    """Score RESULTS, a finished run with `signals: all`, again with another bundle; no image is read.

    A score job with `input: {kind: results, uri: RESULTS}`, of which --set changes a field (--set workers=4). Running
    the same command again completes a run.
    """
    from gradosr.config import ScoreJob
    from gradosr.config.settings import as_yaml, load_settings

    document = {"bundle": bundle, "input": {"kind": "results", "uri": results}, "output": out}
    job = load_settings(ScoreJob, as_yaml(document), "gradosr rescore", overrides)
    return carry_out(job, as_json=as_json, dry_run=dry_run)
