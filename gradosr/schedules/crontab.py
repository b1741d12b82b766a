"""Schedules in the user's crontab: a marked block with one line, in the system's own time zone."""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from datetime import datetime

from gradosr.errors import ConfigError, InputError, first_line
from gradosr.schedules import Schedule
from gradosr.schedules.cron import ClockChanges, Cron
from gradosr.schedules.zones import is_system_clock, system_zone

ADVICE = (
    "cron has neither the variables of this shell nor its PATH, and mails what a command prints; "
    "a night that was missed because the machine was off is caught up by the next one"
)
_LONGEST = 998  # bytes; cron truncates commands at 1000


def render(schedule: Schedule, now: datetime) -> Mapping[str, str]:
    """Return the block. Raise ConfigError if a crontab cannot express the schedule."""
    if not is_system_clock(schedule.zone, now):
        own = system_zone() or "another one"
        raise ConfigError(
            f"--timezone {schedule.zone.key}: a crontab uses the system's time zone, which is {own}; "
            "omit --timezone, or use --as systemd"
        )
    words = (schedule.folder, *schedule.command, *schedule.code)
    if wrong := [word for word in words if "\\" in word or not word.isprintable()]:
        raise ConfigError(f"{wrong[0]!r}: a crontab cannot contain a path with a backslash or a control character")
    code = f"PYTHONPATH={shlex.quote(os.pathsep.join(schedule.code))} " if schedule.code else ""
    command = f"cd {shlex.quote(schedule.folder)} && {code}{shlex.join(schedule.command)}"
    line = f"{schedule.cron} {command}".replace("%", r"\%")
    if len(line.encode()) > _LONGEST:
        raise ConfigError(f"a crontab cannot contain a line of more than {_LONGEST} bytes; use shorter paths")
    lines = (
        f"{_begin(schedule.name)} (made by `gradosr schedule`, which replaces or removes this block)",
        f"# Times are the system's, {schedule.zone.key}. A night that finds the one before still at work ends with",
        "# exit code 7 (the run's lease); the next one goes on with whatever is left.",
        line,
        _end(schedule.name),
    )
    return {"crontab": "".join(f"{one}\n" for one in lines)}


def changes(cron: Cron) -> ClockChanges:
    """Return the behaviour of Debian's cron.

    It makes up for fixed times without repeating them, and runs wildcards by the clock (cron(8)).
    """
    return ClockChanges(late=not cron.is_by_the_clock, twice=cron.is_by_the_clock)


def install(rendered: Mapping[str, str], name: str) -> str:
    """Put the block into the user's crontab, replacing an older one in its place."""
    before = _read()
    rest, place = _without(before, name)
    lines = rest.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    place = len(lines) if place is None else place
    after = "".join([*lines[:place], rendered["crontab"], *lines[place:]])
    if after == before:
        return f"{name} is in your crontab already, as it should be"
    _crontab("-", stdin=after)
    return f"{name} is in your crontab"


def remove(name: str) -> str:
    """Remove the block from the user's crontab and leave the rest unchanged."""
    rest, place = _without(_read(), name)
    if place is None:
        return f"{name} was not in your crontab"
    _crontab("-", stdin=rest)
    return f"{name} is no longer in your crontab"


def _begin(name: str) -> str:
    return f"# BEGIN gradosr {name}"


def _end(name: str) -> str:
    return f"# END gradosr {name}"


def _without(text: str, name: str) -> tuple[str, int | None]:
    """Return the crontab without the block, and the line at which the block began.

    Raise InputError if the block has no end mark.
    """
    kept: list[str] = []
    place, inside = None, False
    begin = re.compile(re.escape(_begin(name)) + r"( .*)?")
    for line in text.splitlines(keepends=True):
        bare = line.rstrip("\n")
        if begin.fullmatch(bare):
            place, inside = (len(kept) if place is None else place), True
        elif inside and bare == _end(name):
            inside = False
        elif not inside:
            kept.append(line)
    if inside:
        raise InputError(f"your crontab: the block {name} has no end mark; mend it by hand (crontab -e)")
    return "".join(kept), place


def _read() -> str:
    try:
        return _crontab("-l")
    except InputError as error:
        if "no crontab for" in str(error):
            return ""
        raise


def _crontab(argument: str, stdin: str | None = None) -> str:
    program = shutil.which("crontab")
    if program is None:
        raise InputError("crontab: no such command here; install cron, or use --as systemd")
    try:
        done = subprocess.run(  # noqa: S603 - found above, with our own arguments
            [program, argument],
            input=stdin,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=30,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(f"crontab {argument}: {first_line(error)}") from error
    if done.returncode:
        raise InputError(f"crontab {argument}: {' '.join(done.stderr.split()) or f'exit code {done.returncode}'}")
    return done.stdout
