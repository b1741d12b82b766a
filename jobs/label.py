"""gradosr label: choose the images that are worth a look, and take back what people said of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .cli import PLACE, Place, json_flag, set_option

if TYPE_CHECKING:
    from gradosr.store import Store

labels_option = click.option(
    "--labels",
    "file",
    type=PLACE,
    metavar="FILE",
    help="Labels that are imported into the run first, as `gradosr label` does.",
)


@click.command()
@click.argument("results", type=PLACE)
@click.option("--next", "number", type=click.IntRange(10, 1000), help="Choose this many images for labelling.")
@click.option("--out", type=Place(file_okay=False, path_type=Path), help="New folder for the chosen images.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Seed of the random half.")
@click.option(
    "--import", "file", type=PLACE, metavar="FILE", help="Labels: CSV, Parquet, Label Studio's or FiftyOne's JSON."
)
@click.option("--who", metavar="NAME", help="Who labelled, where FILE does not tell.  [default: your login name]")
@set_option
@json_flag
def label(
    results: str, number: int | None, out: Path | None, seed: int, file: str | None, who: str | None,
    overrides: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Label images in RESULTS (a folder or s3:// prefix of `gradosr score`), or tell how far that is.

    --next chooses images that nobody has labelled or been given yet: half of them have the highest unknown scores, half
    are drawn at random by strata of the score. --out gets a page for labelling (label.html), a sheet, and tasks for
    Label Studio and FiftyOne. --import reads any of these back.
    """
    from gradosr.config import StoreFields
    from gradosr.config.settings import load_settings
    from gradosr.results.about import read_about
    from gradosr.store import Store
    from gradosr.text import printable

    if (number is None) != (out is None):
        raise click.UsageError("--next and --out belong together")
    if number and file:
        raise click.UsageError("--next and --import are two commands")
    fields = load_settings(StoreFields, "", "--set", overrides)
    store = Store(fields.store, fields.stores)
    if file and not Path(file).is_dir():  # FiftyOne exports a folder
        store.stat(file)
    read_about(store, results)
    from gradosr.labels import counting

    done: dict[str, Any] = {}
    if number and out:
        from gradosr.labels.handing import hand_out

        done = hand_out(store, results, number, seed, out)
    elif file:
        from gradosr.labels.importing import import_labels

        done = import_labels(store, results, file, who or _login())
    for note in done.pop("notes", ()):
        click.echo(f"gradosr: {printable(note)}", err=True)
    facts = {**counting.count(store, results), **done}
    click.echo(json.dumps(facts) if as_json else "\n".join(map(printable, counting.told(facts, results))))


def import_first(store: "Store", runs: Sequence[str], file: str) -> None:
    """Import a file of labels into the run that a command is about to learn from."""
    from gradosr.labels.importing import import_labels
    from gradosr.text import printable

    if len(runs) > 1:
        raise click.UsageError(
            "--labels FILE: of which --run are they? Import them with `gradosr label RESULTS --import`"
        )
    for note in import_labels(store, runs[0], file, _login())["notes"]:
        click.echo(f"gradosr: {printable(note)}", err=True)


def _login() -> str:
    """Return the login name, or `unnamed` where the system has none, as in many containers."""
    from getpass import getuser

    try:
        return getuser()
    except (KeyError, OSError, ImportError):
        return "unnamed"
