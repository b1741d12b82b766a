"""gradosr demo: run the whole workflow on a real S3 server and a real Ray, with the commands that a user would type."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import click

from .cli import Place

KNOWN = ("0", "1", "2", "3", "4", "5")


@click.command()
@click.option(
    "--folder",
    default="demo",
    show_default=True,
    type=Place(path_type=Path),
    help="Folder for the demo's data, models and results.",
)
def demo(folder: Path) -> int:
    """Train on six kinds of handwritten digits, find the other four in an archive on S3, and show them on a page."""
    from gradosr.lab.demo_data import write_configs, write_digits
    from gradosr.lab.seaweedfs import SeaweedFS

    for part in ("images", "s3", "bundle", "results", "audit"):  # left by an earlier demo
        shutil.rmtree(folder / part, ignore_errors=True)
    write_digits(folder / "images", KNOWN)
    write_configs(folder, KNOWN)
    click.echo("# A real S3 server (SeaweedFS) starts on loopback", err=True)
    with SeaweedFS(folder / "s3") as server:
        environment = {**os.environ, **server.environment()}
        server.create_bucket("demo")
        commands = (
            ["pack", str(folder / "images" / "known"), "s3://demo/known/"],
            ["pack", str(folder / "images" / "archive"), "s3://demo/archive/", "--set", "images_per_shard=200"],
            ["fit", str(folder / "fit.yaml")],
            ["score", str(folder / "score.yaml")],
            ["evaluate", str(folder / "results")],
            ["audit", str(folder / "results"), "--out", str(folder / "audit")],
        )
        for arguments in commands:
            if code := _run(arguments, environment):
                return code
    click.echo(f"\nbundle   {folder / 'bundle'}\nresults  {folder / 'results' / 'parts'} (Parquet)", err=True)
    click.echo(f"images   {folder / 'images' / 'archive'}", err=True)
    page = (folder / "audit" / "index.html").resolve()
    click.echo("\nWhat the classifier has never seen, with pictures; open it in a browser:", err=True)
    click.echo(f"  {page.as_uri()}", err=True)
    return 0


def _run(arguments: list[str], environment: Mapping[str, str]) -> int:
    """Run one gradosr command as a user would; it ends when this process does."""
    from gradosr.lab.seaweedfs import bound_to_parent

    click.echo(f"\n$ gradosr {shlex.join(arguments)}", err=True)
    command = bound_to_parent([sys.executable, "-m", "gradosr.jobs.cli", *arguments], signal.SIGTERM)
    process = subprocess.Popen(command, env=dict(environment))  # noqa: S603 - our own arguments
    try:
        return process.wait()
    finally:
        _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End an interrupted command, which stops its own Ray.

    It is asked more than once: a signal raises an exception in Python, and libraries that catch everything while they
    are imported lose it.
    """
    for ask in (process.terminate, process.terminate, process.terminate, process.kill):
        ask()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
            return
