"""gradosr bench: figures, from paired runs in one process."""

import json

import click

from .cli import json_flag


@click.group()
def bench() -> None:
    """Measure speed on this machine; figures are medians of paired runs."""


@bench.command()
@click.option("--arch", default="torchvision:resnet18", show_default=True, help="torchvision:NAME or timm:NAME.")
@click.option("--size", default=32, show_default=True, help="Height and width in pixels.")
@click.option("--batch", default=64, show_default=True, help="Images per batch.")
@click.option("--runs", default=5, show_default=True, help="Paired runs.")
@click.option("--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]))
@json_flag
def engine(arch: str, size: int, batch: int, runs: int, device: str, as_json: bool) -> None:
    """Gradient engine against a forward pass, a training step and a batch-of-one loop."""
    from gradosr.benchmark import bench_engine, table

    facts = bench_engine(arch, size, batch, runs, device)
    click.echo(json.dumps(facts) if as_json else table(facts))
