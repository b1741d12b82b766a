"""gradosr audit: report the images of an archive that the classifier has never seen, from its results."""

import json
from pathlib import Path, PurePath

import click

from .cli import PLACE, Place, json_flag, set_option


@click.command()
@click.argument("results", type=PLACE)
@click.option(
    "--out",
    type=Place(file_okay=False, path_type=Path),
    help="Folder for the report.  [default: the name of RESULTS and -audit, here]",
)
@click.option(
    "--baseline", type=PLACE, metavar="RESULTS", help="Earlier results of the same bundle, to tell what changed."
)
@click.option(
    "--fdr",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Share of the flagged images that may be false alarms.  [default: 0.1]",
)
@click.option("--embeddings", type=PLACE, metavar="FILE", help="Find clusters in these (Parquet: key, vector) instead.")
@set_option
@json_flag
def audit(
    results: str,
    out: Path | None,
    baseline: str | None,
    fdr: float | None,
    embeddings: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Report the images in RESULTS (a folder or s3:// prefix of `gradosr score`) that the classifier has never seen.

    Writes a page (index.html), audit.json, the flagged images (flagged.parquet; where none can be flagged, all over the
    threshold as over_threshold.parquet) and exports for labelling.
    """
    from gradosr.config import AuditSettings
    from gradosr.config.settings import load_settings
    from gradosr.results.about import read_about
    from gradosr.store import Store
    from gradosr.text import printable

    out = out or Path(f"{PurePath(results).name}-audit")
    flags = [f"{name}={value}" for name, value in (("fdr", fdr), ("embeddings", embeddings)) if value is not None]
    settings = load_settings(AuditSettings, "", "--set", (*overrides, *flags))
    store = Store(settings.store, settings.stores)
    about = [read_about(store, run) for run in (results, baseline) if run is not None]
    from gradosr.audit import audit as find_facts
    from gradosr.audit.summary import summary
    from gradosr.labels import read_labels, verdicts

    said = verdicts(read_labels(store, results), about[0]["classes"])
    document = find_facts(store, results, settings, baseline, out, verdicts=said)
    for note in document["notes"]:
        click.echo(f"gradosr: {printable(note)}", err=True)
    click.echo(json.dumps(document) if as_json else summary(document))
    click.echo(f"gradosr: {printable(str(out / 'index.html'))}: open it in a browser", err=True)
