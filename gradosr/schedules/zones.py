"""Time zones by name, and the time zone of this system's cron."""

import difflib
from datetime import datetime, timedelta, timezone
from pathlib import Path
from zoneinfo import ZoneInfo, available_timezones

from gradosr.errors import ConfigError

LOCALTIME = Path("/etc/localtime")
_TIMEZONE = Path("/etc/timezone")


def zone_of(name: str) -> ZoneInfo:
    """Return the time zone with an IANA name. Raise ConfigError, with similar names, if it is unknown."""
    known = available_timezones()
    if name in known:
        return ZoneInfo(name)
    if not known:
        raise ConfigError(f"--timezone {name!r}: this system has no time zone data; install tzdata")
    hint = f"; did you mean {' or '.join(close)}?" if (close := _near(name, known)) else ""
    raise ConfigError(f"--timezone {name!r}: no such time zone{hint} (IANA names, such as Europe/Berlin)")


def _near(name: str, known: set[str]) -> list[str]:
    """Return up to three names that end in this one (a city) or have a similar spelling."""
    wanted = name.strip().replace(" ", "_").lower()
    by_spelling: dict[str, str] = {}
    for zone in sorted(known, key=lambda zone: (zone.startswith(("posix/", "right/", "Etc/")), zone)):
        for spelling in (zone.lower(), zone.lower().rpartition("/")[2]):
            by_spelling.setdefault(spelling, zone)
    city = wanted.rpartition("/")[2]
    exact = [by_spelling[spelling] for spelling in (wanted, city) if spelling in by_spelling]
    close = [by_spelling[one] for one in difflib.get_close_matches(wanted, by_spelling, 3, 0.75)]
    close += [by_spelling[one] for one in difflib.get_close_matches(city, by_spelling, 3, 0.75)]
    return list(dict.fromkeys(exact + close))[:3]


def system_zone() -> str | None:
    """Return the name of the system's time zone, which cron uses, or None if the system does not name it."""
    if not LOCALTIME.exists():
        return "Etc/UTC"
    _, found, name = str(LOCALTIME.resolve()).partition("/zoneinfo/")
    if not found and _TIMEZONE.exists():
        name = _TIMEZONE.read_text(encoding="utf-8", errors="replace").strip()
    return name if name in available_timezones() else None


def is_system_clock(zone: ZoneInfo, after: datetime) -> bool:
    """Return whether the system's clock shows the same time as `zone` for the two years from `after`.

    The names of the two zones may differ.
    """
    own: ZoneInfo | timezone = timezone.utc
    if LOCALTIME.exists():
        with LOCALTIME.open("rb") as file:
            own = ZoneInfo.from_file(file, "localtime")
    instants = (after + timedelta(hours=6 * count) for count in range(4 * 731))
    return all(instant.astimezone(own).utcoffset() == instant.astimezone(zone).utcoffset() for instant in instants)
