"""gradosr schedule: run a screening every night with cron, systemd or Kubernetes."""

import json
from typing import TYPE_CHECKING

import click

from .cli import DONE, config_argument, json_flag

if TYPE_CHECKING:
    from gradosr.schedules import Schedule

TARGETS = ("crontab", "systemd", "k8s-cronjob", "ray-cronjob")


@click.command()
@config_argument
@click.option("--cron", metavar="EXPRESSION", help='Five fields: "30 2 * * *" is every day at half past two.')
@click.option(
    "--timezone", metavar="NAME", help="IANA name of the time zone. Default: the system's; Etc/UTC for Kubernetes."
)
@click.option("--as", "target", required=True, type=click.Choice(TARGETS), help="Scheduler that starts the screening.")
@click.option(
    "--install/--remove", "install", default=None, help="Add the schedule to your crontab or systemd, or remove it."
)
@click.option("--image", help="Container image for Kubernetes. Default: ghcr.io/OWNER/gradosr:VERSION.")
@json_flag
def schedule(
    config: str,
    cron: str | None,
    timezone: str | None,
    target: str,
    install: bool | None,
    image: str | None,
    as_json: bool,
) -> int:
    """Print `gradosr screen CONFIG` as a schedule on stdout, and report the next five times.

    A night that starts while the one before is still running ends with exit code 7; the next night makes up for a
    missed one.
    """
    from datetime import datetime
    from datetime import timezone as zones

    from gradosr.config import ScreenJob, load_job
    from gradosr.run.travel import check_seen
    from gradosr.schedules import LOCAL, make_schedule, name_of
    from gradosr.schedules import TARGETS as KINDS

    kind = KINDS[target]
    if install is not None and (kind.install is None or kind.remove is None):
        raise click.UsageError(f"--as {target}: nothing to install from here; kubectl apply takes what is printed")
    if install is False and kind.remove:
        removed = kind.remove(name_of(config))
        facts = {"target": target, "name": name_of(config), "done": removed}
        click.echo(json.dumps(facts) if as_json else removed)
        return DONE
    if cron is None:
        raise click.UsageError("--cron is required")
    job = load_job(ScreenJob, config)  # report faults now instead of at night
    if target not in LOCAL:
        check_seen(job)
    wanted = make_schedule(config, cron, timezone, target, image, job.trust)
    rendered = kind.render(wanted, datetime.now(zones.utc))
    done = kind.install(rendered, wanted.name) if install and kind.install else None
    _tell(wanted, target, dict(rendered), done, as_json=as_json)
    return DONE


def _tell(wanted: "Schedule", target: str, rendered: dict[str, str], done: str | None, *, as_json: bool) -> None:
    """Print the schedule on stdout and notes about it on stderr, or everything as one document."""
    from gradosr.schedules import TARGETS as KINDS
    from gradosr.schedules import next_times, warnings
    from gradosr.text import printable

    times, notes = next_times(wanted, target), [*warnings(wanted, target), KINDS[target].advice]
    if as_json:
        facts = {
            "target": target,
            "name": wanted.name,
            "cron": str(wanted.cron),
            "timezone": wanted.zone.key,
            "next": [time.isoformat() for time in times],
            "notes": notes,
            "rendered": rendered,
            "done": done,
        }
        click.echo(json.dumps(facts))
        return
    for name, text in rendered.items():
        click.echo(f"# {name}\n{text}" if len(rendered) > 1 else text, nl=False)
    click.echo(f"gradosr: next times ({wanted.zone.key}):", err=True)
    for time in times:
        click.echo(f"gradosr:   {time:%a %Y-%m-%d %H:%M %Z (UTC%z)}", err=True)
    for note in [*notes, *([done] if done else [])]:
        click.echo(f"gradosr: {printable(note)}", err=True)
