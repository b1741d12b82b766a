"""Nightly screening as a schedule for cron, systemd or Kubernetes: one file per variant, one line each in TARGETS.

A rendered schedule contains no secrets and no values of environment variables: credentials come from the place where it
runs. No target needs a lock: a night that starts while another is running is turned away by the run's lease (exit code
7), and work that a night missed is still pending for the next.
"""

import hashlib
import itertools
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from gradosr.errors import ConfigError
from gradosr.schedules.cron import ClockChanges, Cron, clock_changes, firings
from gradosr.schedules.zones import system_zone, zone_of

SHOWN = 5
"""Number of next times that are shown."""


@dataclass(frozen=True)
class Schedule:
    """A screening command and its times."""

    config: str
    """Absolute path of the config."""
    cron: Cron
    zone: ZoneInfo
    name: str
    """Name of the crontab block, units or objects; the same config always gets the same name."""
    image: str
    """Container image, for Kubernetes."""
    folder: str
    """Folder from which relative paths in the config are resolved: the one in which the schedule was made."""
    program: tuple[str, ...]
    """Start of the command line, with the full path, because a scheduler does not have the user's PATH."""

    @property
    def command(self) -> tuple[str, ...]:
        """Command line of the screening on this machine."""
        return (*self.program, "screen", self.config)


class Target(NamedTuple):
    """One kind of scheduler."""

    render: Callable[[Schedule, datetime], Mapping[str, str]]
    """Function (schedule, now) -> text by file name. Raises ConfigError for anything the target cannot express."""
    changes: Callable[[Cron], ClockChanges]
    """Function that returns the target's behaviour when the clock changes."""
    install: Callable[[Mapping[str, str], str], str] | None
    """Function (rendered text, name) -> a message about what was done; None if installation is not possible from
    here."""
    remove: Callable[[str], str] | None
    """Function (name) -> a message about what was done."""
    advice: str
    """Note to show with the rendered text."""


def make_schedule(config: str, cron: str, zone: str | None, target: str, image: str | None = None) -> Schedule:
    """Return the schedule. Raise ConfigError with every fault, one per line."""
    faults: list[str] = []

    def attempt(step: Callable[[], Any]) -> Any:
        try:
            return step()
        except ConfigError as error:
            faults.append(str(error))

    parsed = attempt(lambda: Cron.parse(cron))
    found = attempt(lambda: zone_of(zone or _default_zone(target)))
    attempt(lambda: _check_config(config))
    if faults:
        raise ConfigError("\n".join(faults))
    image = image or f"ghcr.io/OWNER/gradosr:{version('gradosr')}"
    return Schedule(os.path.abspath(config), parsed, found, name_of(config), image, str(Path.cwd()), _program())  # noqa: PTH100 - links stay


def name_of(config: str) -> str:
    """Return the schedule's name, derived from the config's path.

    It consists of a-z, 0-9 and -, at most 36 characters, as KubeRay requires.
    """
    path = os.path.abspath(config)  # noqa: PTH100 - links stay
    stem = re.sub(r"[^a-z0-9]+", "-", Path(path).stem.lower())[:19].strip("-")
    digest = hashlib.sha256(path.encode(errors="surrogateescape")).hexdigest()[:8]
    return "-".join(filter(None, ["gradosr", stem, digest]))


def next_times(schedule: Schedule, target: str, now: datetime | None = None) -> list[datetime]:
    """Return the next times at which the target starts a night, in the schedule's zone."""
    changes = TARGETS[target].changes(schedule.cron)
    return list(itertools.islice(firings(schedule.cron, schedule.zone, changes, now or _now()), SHOWN))


def warnings(schedule: Schedule, target: str, now: datetime | None = None) -> list[str]:
    """Describe how the target handles the next clock changes that affect the schedule, one line for each kind."""
    changes = TARGETS[target].changes(schedule.cron)
    told: dict[bool, str] = {}
    for local, missing in clock_changes(schedule.cron, schedule.zone, now or _now()):
        when = f"{local:%Y-%m-%d} {local:%H:%M}"
        if missing:
            what = "runs when the gap is over" if changes.late else "does not run that day; the next time catches up"
            told.setdefault(True, f"{when} is left out by the clock of {schedule.zone.key}: {target} {what}")
        elif changes.twice:
            told.setdefault(False, f"{when} comes twice by the clock of {schedule.zone.key}: {target} runs both times")
    return list(told.values())


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _default_zone(target: str) -> str:
    if target not in LOCAL:
        return "Etc/UTC"
    if found := system_zone():
        return found
    raise ConfigError("--timezone: required, because the system's own time zone has no name here")


def _check_config(config: str) -> None:
    if not config.isprintable():
        raise ConfigError(f"{config!r}: a path with control characters cannot stand in a schedule")
    if not Path(config).is_file():
        raise ConfigError(f"{config}: no such file")


def _program() -> tuple[str, ...]:
    beside = Path(sys.executable).with_name("gradosr")
    return (str(beside),) if os.access(beside, os.X_OK) else (sys.executable, "-m", "gradosr.jobs.cli")


from gradosr.schedules import crontab, kubernetes, systemd  # noqa: E402 - they are made of the names above

TARGETS = {
    "crontab": Target(crontab.render, crontab.changes, crontab.install, crontab.remove, crontab.ADVICE),
    "systemd": Target(systemd.render, systemd.changes, systemd.install, systemd.remove, systemd.ADVICE),
    "k8s-cronjob": Target(kubernetes.cronjob, kubernetes.changes, None, None, kubernetes.ADVICE),
    "ray-cronjob": Target(kubernetes.raycronjob, kubernetes.changes, None, None, kubernetes.ADVICE),
}
"""Targets by their name for --as."""
LOCAL = ("crontab", "systemd")
"""Targets on this machine."""
