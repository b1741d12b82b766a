"""Schedules as a service and a timer of the user's systemd."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from gradosr.errors import ConfigError, InputError, first_line
from gradosr.schedules import Schedule
from gradosr.schedules.cron import ClockChanges, Cron, Field

ADVICE = (
    "units of a user run while that user is logged in; `loginctl enable-linger` lets them run always; "
    "they have none of the variables of this shell"
)
_DAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")


def render(schedule: Schedule, _now: datetime) -> Mapping[str, str]:
    """Return NAME.service and NAME.timer. Raise ConfigError if a unit cannot express the schedule."""
    if wrong := [word for word in (schedule.folder, *schedule.command, *schedule.code) if not word.isprintable()]:
        raise ConfigError(f"{wrong[0]!r}: a systemd unit cannot contain a path with a control character")
    if re.search(r"[\\$\"']", schedule.program[0]):
        raise ConfigError(f"{schedule.program[0]}: a systemd unit cannot start a program with such a path")
    if "\\" in schedule.folder or schedule.folder != schedule.folder.strip():
        raise ConfigError(f"{schedule.folder!r}: a systemd unit cannot use a folder with such a name")
    title = f"gradosr screening {schedule.name}"
    service = [
        "# Made by `gradosr schedule`. A night that finds another driver at work on the same folder exits with exit",
        "# code 7 (the run's lease); systemd itself starts no night while the one before still runs.",
        "[Unit]",
        f"Description={title}",
        "",
        "[Service]",
        "Type=oneshot",
        f"WorkingDirectory={schedule.folder.replace('%', '%%')}",
        *([f"Environment={_setting('PYTHONPATH', os.pathsep.join(schedule.code))}"] if schedule.code else []),
        f"ExecStart={' '.join(_word(word) for word in schedule.command)}",
        "Nice=10",
    ]
    timer = [
        "[Unit]",
        f"Description={title}, {schedule.cron} in {schedule.zone.key}",
        "",
        "[Timer]",
        *(f"OnCalendar={calendar}" for calendar in calendars(schedule.cron, schedule.zone.key)),
        "Persistent=true",
        "",
        "[Install]",
        "WantedBy=timers.target",
    ]
    return {f"{schedule.name}.service": _text(service), f"{schedule.name}.timer": _text(timer)}


def changes(_cron: Cron) -> ClockChanges:
    """Return the behaviour that `systemd-analyze calendar` of systemd 252 shows, for fixed times and wildcards."""
    return ClockChanges(late=False, twice=False)


def calendars(cron: Cron, zone: str) -> list[str]:
    """Return the expression in OnCalendar notation.

    If either day field may match, it takes two lines, because systemd requires both fields of a line to match.
    """
    month, clock = _numbers(cron.month), f"{_numbers(cron.hour)}:{_numbers(cron.minute)}:00"
    by_week = "" if cron.weekday.is_star else ",".join(_DAYS[day] for day in sorted(cron.weekday.values)) + " "
    by_month = f"*-{month}-{_numbers(cron.day)}"
    if cron.either_day:
        return [f"{by_month} {clock} {zone}", f"{by_week}*-{month}-* {clock} {zone}"]
    return [f"{by_week}{by_month} {clock} {zone}"]


def install(rendered: Mapping[str, str], name: str) -> str:
    """Write the units, then enable and start the timer."""
    program, folder = _systemctl(), _folder()
    _run(program, "show-environment")  # fails before anything is written if the user's systemd is not running
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in rendered.items():
            (folder / f".{file}.new").write_text(text, encoding="utf-8")
            (folder / f".{file}.new").replace(folder / file)
    except OSError as error:
        raise InputError(f"{folder}: {first_line(error)}") from error
    _run(program, "daemon-reload")
    _run(program, "enable", "--now", f"{name}.timer")
    return f"{name}.timer is enabled; its units are in {folder}"


def remove(name: str) -> str:
    """Stop and disable the timer, then delete the units."""
    program, folder = _systemctl(), _folder()
    units = [folder / f"{name}.{kind}" for kind in ("timer", "service")]
    if not any(unit.exists() for unit in units):
        return f"{name} was not in {folder}"
    _run(program, "disable", "--now", f"{name}.timer")
    for unit in units:
        unit.unlink(missing_ok=True)
    _run(program, "daemon-reload")
    return f"{name}.timer and {name}.service are gone from {folder}"


def _text(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _numbers(field: Field) -> str:
    return "*" if field.is_star else ",".join(f"{value:02}" for value in sorted(field.values))


def _word(text: str) -> str:
    """Quote one word of ExecStart, following systemd.service(5), COMMAND LINES."""
    text = text.replace("%", "%%")
    if re.fullmatch(r"[A-Za-z0-9_./:@%+=,-]+", text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$") + '"'


def _setting(name: str, value: str) -> str:
    """Quote one assignment of Environment, in which $ has no meaning (systemd.exec(5))."""
    value = value.replace("%", "%%").replace("\\", "\\\\").replace('"', '\\"')
    return f'"{name}={value}"'


def _folder() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd" / "user"


def _systemctl() -> str:
    program = shutil.which("systemctl")
    if program is None:
        raise InputError("systemctl: no such command here; use --as crontab")
    return program


def _run(program: str, *arguments: str) -> None:
    try:
        done = subprocess.run(  # noqa: S603 - found by name, with our own arguments
            [program, "--user", *arguments], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(f"systemctl --user {' '.join(arguments)}: {first_line(error)}") from error
    if done.returncode:
        reason = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise InputError(f"systemctl --user {' '.join(arguments)}: {reason}")
