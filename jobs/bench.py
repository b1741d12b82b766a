"""gradosr bench: measure speed, in paired runs within one process."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .cli import DONE, FAILED, PLACE, Place, json_flag, set_option

if TYPE_CHECKING:
    from gradosr.config import DeviceName, Precision

COUNT = click.IntRange(min=1)
device_option = click.option("--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]))
runs_option = click.option("--runs", default=5, show_default=True, type=COUNT, help="Number of paired runs.")


@click.group()
def bench() -> None:
    """Measure speed on this machine; figures are medians of paired runs."""


@bench.command()
@click.option("--arch", default="torchvision:resnet18", show_default=True, help="torchvision:NAME or timm:NAME.")
@click.option("--size", default=32, show_default=True, type=COUNT, help="Height and width in pixels.")
@click.option("--batch", default=64, show_default=True, type=COUNT, help="Images per batch.")
@runs_option
@device_option
@click.option(
    "--precision",
    default="float32",
    show_default=True,
    type=click.Choice(["float32", "tf32", "bfloat16"]),
    help="Precision of all contenders; tf32 needs CUDA.",
)
@click.option("--explain", is_flag=True, help="Instead list the rule that serves each parameter, and its cost.")
@click.option(
    "--conformance",
    type=click.Choice(["torchvision", "timm"]),
    help="Instead compare every architecture of a library with the slow definition; exit 1 if one does not conform.",
)
@json_flag
def engine(
    arch: str,
    size: int,
    batch: int,
    runs: int,
    device: str,
    precision: "Precision",
    conformance: str | None,
    *,
    explain: bool,
    as_json: bool,
) -> int:
    """Compare the gradient engine with a forward pass, a training step, a batch-of-one loop and torch.func's vmap."""
    if explain and conformance:
        raise click.UsageError("--explain and --conformance: one at a time")
    if conformance:
        return _conformance(conformance, as_json=as_json)
    from gradosr.lab.benchmark.engine import bench_engine, explain_engine
    from gradosr.lab.benchmark.tables import explained_table, table

    if explain:
        rows = explain_engine(arch, size, batch, device, precision)
        document = {"arch": arch, "size": size, "batch": batch, "parameters": [asdict(row) for row in rows]}
        click.echo(json.dumps(document) if as_json else explained_table(rows))
    else:
        facts = bench_engine(arch, size, batch, runs, device, precision)
        click.echo(json.dumps(facts) if as_json else table(facts))
    return DONE


@bench.command(name="table")
@click.argument("file", type=Place(exists=True, dir_okay=False, writable=True, path_type=Path))
@runs_option
@device_option
def write_table(file: Path, runs: int, device: str) -> None:
    """Write the speed table between the two markers of FILE, such as docs/cost.md."""
    from gradosr.lab.benchmark.engine import CONFIGURATIONS, bench_engine
    from gradosr.lab.benchmark.tables import check_marked, markdown, replaced, table

    check_marked(file.read_text(encoding="utf-8"), str(file))
    measured = []
    for arch, size, batch in CONFIGURATIONS:
        measured.append(bench_engine(arch, size, batch, runs, device))
        click.echo(table(measured[-1]), err=True)
    file.write_text(replaced(file.read_text(encoding="utf-8"), markdown(measured)), encoding="utf-8")


@bench.command(name="gpu")
@click.argument("out", type=Place(dir_okay=False, writable=True, path_type=Path))
@click.option(
    "--seconds",
    default=240.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Seconds after which no section begins.",
)
@click.option("--small", is_flag=True, help="Use tiny sizes, to try the measurement itself on any machine.")
@click.option("--device", default="cuda", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]))
def bench_gpu(out: Path, seconds: float, device: str, *, small: bool) -> None:
    """Measure a CUDA device within minutes: speed, memory, accuracy, forms, whole jobs.

    OUT is a JSON file to which results are added as they arrive.
    """
    from gradosr.lab.benchmark.gpu import measure

    measure(out, seconds, device, lambda line: click.echo(line, err=True), small=small)


@bench.command(name="cost")
@click.option("--arch", help="torchvision:NAME or timm:NAME; default: networks of five kinds.")
@click.option("--size", default=224, show_default=True, type=COUNT, help="Height and width in pixels, with --arch.")
@click.option("--batch", default=32, show_default=True, type=COUNT, help="Images per batch, with --arch.")
@click.option("--price", type=click.FloatRange(min=0), help="Price of an hour of this machine, in any currency.")
@runs_option
@device_option
@json_flag
def bench_cost(
    arch: str | None, size: int, batch: int, price: float | None, runs: int, device: "DeviceName", *, as_json: bool
) -> None:
    """Measure what each detector costs: in forward passes, and in hours and money for 100 million images."""
    from gradosr.lab.benchmark import cost

    networks = [cost.Network(arch, size, batch)] if arch else cost.NETWORKS
    facts = cost.bench_cost(networks, runs, device, lambda line: click.echo(line, err=True))
    click.echo(json.dumps(facts) if as_json else cost.cost_table(facts, price))


@bench.command(name="driver")
@click.option("--shards", default=100_000, show_default=True, type=COUNT)
@click.option("--workers", default=2, show_default=True, type=COUNT)
@click.option(
    "--folder",
    type=Place(exists=True, file_okay=False, writable=True),
    help="Folder for archive and results during the measurement; default: the system's temporary folder.",
)
@json_flag
def bench_driver(shards: int, workers: int, folder: str | None, as_json: bool) -> None:
    """Measure the driver with shards that take no time to score.

    Reports milliseconds per shard, memory, and the seconds needed to find that all shards are done.
    """
    import tempfile

    from gradosr.lab.benchmark import driver
    from gradosr.run.console import Notes

    with tempfile.TemporaryDirectory(dir=folder) as place:
        facts = driver.bench_driver(shards, workers, Path(place), Notes())
    click.echo(json.dumps(facts) if as_json else driver.driver_table(facts))


@bench.command(name="audit")
@click.option("--rows", default=10_000_000, show_default=True, type=COUNT)
@click.option(
    "--folder",
    type=Place(exists=True, file_okay=False, writable=True),
    help="Folder for the results during the measurement; default: the system's temporary folder.",
)
@json_flag
def bench_audit(rows: int, folder: str | None, as_json: bool) -> None:
    """Measure an audit of generated results: seconds, and the memory of this process."""
    import tempfile

    from gradosr.lab.benchmark import audit

    with tempfile.TemporaryDirectory(dir=folder) as place:
        facts = audit.bench_audit(rows, Path(place))
    click.echo(json.dumps(facts) if as_json else audit.audit_table(facts))


@bench.command(name="job")
@click.option(
    "--archive",
    default="tar",
    show_default=True,
    type=click.Choice(["tar", "parquet"]),
    help="Kind of archive to generate.",
)
@click.option("--config", type=PLACE, help="A score job whose archive and bundle are copied instead.")
@set_option
@click.option("--workers", default=1, show_default=True, type=COUNT)
@click.option("--threads", type=COUNT, help="Threads of each worker; default: an equal share of the machine's cores.")
@click.option("--shards", default=8, show_default=True, type=COUNT)
@click.option("--images", type=COUNT, help="Images in each generated shard; default: about ten seconds of work.")
@click.option("--rounds", default=3, show_default=True, type=COUNT, help="Number of paired rounds.")
@click.option(
    "--peer/--no-peer", default=True, show_default=True, help="Also measure the same job as a Ray Data pipeline."
)
@click.option(
    "--folder",
    type=Place(exists=True, file_okay=False, writable=True),
    help="Folder for archive and results during the measurement; default: the system's temporary folder.",
)
@json_flag
def bench_job(
    archive: str,
    config: str | None,
    overrides: tuple[str, ...],
    workers: int,
    threads: int | None,
    shards: int,
    images: int | None,
    rounds: int,
    folder: str | None,
    *,
    peer: bool,
    as_json: bool,
) -> None:
    """Compare a whole job with its parts and with Ray Data.

    Contenders are the engine alone, reading and decoding alone, and a Ray Data pipeline with the same scorer.
    """
    import tempfile

    from gradosr.config import ScoreJob, load_job

    given = load_job(ScoreJob, config, overrides) if config else None
    import joblib

    from gradosr.lab.benchmark import job
    from gradosr.run.console import Notes

    sizes = job.Sizes(workers, threads or max(1, joblib.cpu_count() // workers), shards, rounds)
    with tempfile.TemporaryDirectory(dir=folder) as place, Notes() as notes:
        source = given or job.MadeUpArchive(archive, images)
        facts = job.bench_job(source, sizes, Path(place), notes, peer=peer)
    click.echo(json.dumps(facts) if as_json else job.job_table(facts))


def _conformance(library: str, *, as_json: bool) -> int:
    """Print one line per architecture as it finishes, or one document at the end."""
    from gradosr.lab.benchmark.tables import conformance_line
    from gradosr.lab.conformance import conformance, facts

    found = []
    for one in conformance(library):
        found.append(one)
        click.echo(conformance_line(one), err=as_json)
    conforming = sum(one.conforms for one in found)
    if as_json:
        document = {
            "library": library,
            "architectures": [facts(one) for one in found],
            "count": len(found),
            "conforming": conforming,
        }
        click.echo(json.dumps(document))
    else:
        click.echo(f"{library}: {conforming} of {len(found)} architectures conform")
    return DONE if conforming == len(found) else FAILED
