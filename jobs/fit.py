"""gradosr fit: make a bundle from a classifier and known images."""

import json
from functools import partial

import click

from .cli import PLACE, json_flag, print_config, print_config_option, set_option


def _names(_context: click.Context, _option: click.Parameter, value: str | None) -> tuple[str, ...] | str | None:
    """Split comma-separated names; the URI of a JSON list stays as it is."""
    if value is None or value.endswith(".json"):
        return value
    return tuple(name.strip() for name in value.split(","))


def _share(_context: click.Context, _option: click.Parameter, value: str | None) -> float | str | None:
    """Turn a share into a number; the URI of a list stays as it is."""
    try:
        return None if value is None else float(value)
    except ValueError:
        return value


@click.command()
@click.argument("config", type=PLACE, required=False)
@click.option("--arch", metavar="NAME", help="torchvision:NAME, timm:NAME, hf:FOLDER or package.module:factory.")
@click.option("--weights", type=PLACE, metavar="FILE", help="Weights: .safetensors, or a checkpoint of torch.")
@click.option(
    "--classes",
    metavar="NAMES",
    callback=_names,
    help="Classes in logit order, A,B,C or the URI of a JSON list. Default: the folders of --images, sorted.",
)
@click.option(
    "--images", type=PLACE, metavar="URI", help="Known images: a folder of class folders, tar or Parquet files."
)
@click.option(
    "--held-out",
    type=PLACE,
    metavar="SHARE|FILE",
    callback=_share,
    help="Images that the classifier was not trained on: a share, or a list of keys. Default without CONFIG: all.",
)
@click.option("--bundle", type=PLACE, metavar="FOLDER", help="Folder or s3:// prefix to write the bundle to.")
@click.option("--force", is_flag=True, help="Replace a bundle, and accept class names that look exchanged.")
@print_config_option
@set_option
@json_flag
def fit(
    config: str | None, arch: str | None, weights: str | None, classes: tuple[str, ...] | str | None,
    images: str | None, held_out: float | str | None, bundle: str | None, force: bool, print_only: bool,
    overrides: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Fit an unknown detector (and train the classifier, if CONFIG asks for that) and save the bundle.

    The job is a config file, flags that change it, or flags alone:

    gradosr fit --arch torchvision:resnet18 --weights w.pt --images DIR --bundle B
    """
    from gradosr.bundle.manifest import check_new
    from gradosr.fit.from_flags import fit_job
    from gradosr.fit.preflight import check_given
    from gradosr.store import Store

    needed = {"--arch": arch, "--images": images, "--bundle": bundle}
    if config is None and not overrides and (missing := [flag for flag, value in needed.items() if value is None]):
        raise click.UsageError(f"name a config file, or give {' and '.join(missing)} as well")
    flags = {"arch": arch, "weights": weights, "classes": classes, "images": images, "held_out": held_out}
    job = fit_job(config, flags | {"bundle": bundle}, overrides, partial(click.echo, err=True))
    if print_only:
        print_config(job)
        return
    store = Store(job.store, job.stores)
    if not force:
        check_new(store, job.bundle, ", or replace it with --force")
    check_given(job)
    from gradosr.fit.fitting import fit as fit_bundle
    from gradosr.fit.fitting import record_job
    from gradosr.run.console import Notes

    record_job(store, job)
    with Notes() as notes:
        made = fit_bundle(job, notes, force=force)
        made.save(store, job.bundle)
        notes.say(f"bundle written to {job.bundle}")
        if made.own_code:
            notes.say(f"its network is your own code: score it with --trust {made.own_code}, or `trust` in a config")
    click.echo(json.dumps({"bundle": job.bundle, **made.facts()}) if as_json else job.bundle)
