"""Nightly screening as a schedule for cron, systemd or Kubernetes: one file per variant, one line each in TARGETS.

A rendered schedule contains no secrets and no values of environment variables, but for the folders of PYTHONPATH where
the config trusts code that is found by them alone: credentials come from the place where it runs. No target needs a
lock: a night that starts while another is running is turned away by the run's lease (exit code 7), and work that a
night missed is still pending for the next.
"""

import hashlib
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from gradosr.errors import ConfigError, first_line
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
    code: tuple[str, ...] = ()
    """Folders that PYTHONPATH must name for the code that the config trusts."""

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


def make_schedule(
    config: str, cron: str, zone: str | None, target: str, image: str | None = None, trust: Sequence[str] = ()
) -> Schedule:
    """Return the schedule. Raise ConfigError with every fault, one per line.

    The code that the config trusts must be found here, unless it is to run in an image.
    """
    faults: list[str] = []

    def attempt(step: Callable[[], Any]) -> Any:
        try:
            return step()
        except ConfigError as error:
            faults.append(str(error))

    parsed = attempt(lambda: Cron.parse(cron))
    found = attempt(lambda: zone_of(zone or _default_zone(target)))
    attempt(lambda: _check_config(config))
    code = attempt(lambda: _code_folders(trust) if target in LOCAL else ())
    if faults:
        raise ConfigError("\n".join(faults))
    release = re.match(r"\d+(\.\d+)*", version("gradosr"))  # a version between releases may be no image's tag
    image = image or f"ghcr.io/OWNER/gradosr:{release[0] if release else 'latest'}"
    path = os.path.abspath(config)  # noqa: PTH100 - links stay
    return Schedule(path, parsed, found, name_of(config), image, str(Path.cwd()), _program(), code)


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


_ABSENT = """
import importlib.util, sys
del sys.path[0]
print(*(name for name in sys.argv[1:] if importlib.util.find_spec(name) is None))
"""
"""Program that prints which of the packages it does not find."""


def _code_folders(trust: Sequence[str]) -> tuple[str, ...]:
    """Return the folders without which a new process does not find the trusted code: none where it is installed.

    Python is asked, because installed code can be found in more ways than by folders.
    """
    names = {name: name.partition(":")[0].partition(".")[0] for name in trust}
    command = [sys.executable, "-E", "-c", _ABSENT, *names.values()]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)  # noqa: S603 - our own
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"trust: {', '.join(trust)}: cannot be looked for: {first_line(error)}") from error
    hidden = done.stdout.split()
    folders = []
    for name, package in names.items():
        if package in hidden:
            spec = find_spec(package)
            if spec is None:
                raise ConfigError(
                    f"trust: {name}: no {package} is found here; install it, or set PYTHONPATH to its folder"
                )
            places = spec.submodule_search_locations or [spec.origin or ""]
            folders += [str(Path(place).absolute().parent) for place in places]
    others = os.environ.get("PYTHONPATH", "").split(os.pathsep) if folders else []  # what the code itself imports
    return tuple(dict.fromkeys([*folders, *(str(Path(other).absolute()) for other in others if other)]))


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
