"""gradosr logs: print the log of a submitted job."""

import click

from .cli import address_option


@click.command()
@click.argument("job")
@click.option(
    "-f", "--follow", is_flag=True, help="Follow the log until the job ends, reconnecting when the connection is lost."
)
@address_option
def logs(job: str, follow: bool, address: str | None) -> None:
    """Print the log of JOB, a job's id as `gradosr submit` printed it."""
    from gradosr.run.submission import Cluster

    cluster = Cluster(address)
    if follow:
        cluster.follow(job, say)
    else:
        for line in cluster.log(job).splitlines():
            say(line)


def say(line: str, *, err: bool = False) -> None:
    """Print one line of a log on stdout or stderr."""
    from gradosr.text import printable

    click.echo(printable(line.expandtabs()), err=err)
