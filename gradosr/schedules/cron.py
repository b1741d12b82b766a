"""Five-field cron expressions, limited to notation on which all crons agree, and their times in a time zone.

Cron, systemd and Kubernetes read the same five fields, but differ when clocks change and in rare forms of the notation.
Ambiguous notation is refused, with advice on what to write instead; clock changes are followed target by target. A
library would know only one of the three behaviours, and the separate fields are needed for systemd's own notation.
The package cronsim 2.8, for example, follows Debian's cron alone, names no value in errors, accepts notation refused
here (L, 5#3, seconds), and reads 5-5/15 as 5,20,35,50, where it means 5.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from zoneinfo import ZoneInfo

from gradosr.errors import ConfigError

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_LONGEST = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)  # days of each month, in a leap year
_ITEM = re.compile(r"(?:(\*)|([0-9]{1,2}|[a-z]{3})(?:-([0-9]{1,2}|[a-z]{3}))?)(?:/([0-9]{1,2}))?", re.IGNORECASE)
_FORM = "five fields (minute hour day-of-month month day-of-week) of numbers, *, lists, ranges and steps"


@dataclass(frozen=True)
class _Place:
    """The range and names allowed in one of the five fields."""

    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()


_PLACES = (
    _Place("minute", 0, 59),
    _Place("hour", 0, 23),
    _Place("day of month", 1, 31),
    _Place("month", 1, 12, _MONTHS),
    _Place("day of week", 0, 7, _DAYS),  # 7 is Sunday too
)


@dataclass(frozen=True)
class Field:
    """One field: its text, in numbers that every cron accepts, and the values that it matches."""

    text: str
    values: frozenset[int]

    @property
    def is_star(self) -> bool:
        """True if the field is a plain star."""
        return self.text == "*"

    @property
    def is_wild(self) -> bool:
        """True if cron treats the field as a wildcard, that is, if it begins with a star."""
        return self.text.startswith("*")


@dataclass(frozen=True)
class Cron:
    """A cron expression that fires at some time."""

    minute: Field
    hour: Field
    day: Field
    month: Field
    weekday: Field
    """Day of the week; 0 is Sunday."""

    @classmethod
    def parse(cls, text: str) -> "Cron":
        """Parse an expression. Raise ConfigError with every fault, one per line."""
        words = text.split()
        if len(words) != len(_PLACES):
            shorthand = "; shorthands such as @daily are not taken" if text.strip().startswith("@") else ""
            raise ConfigError(f"--cron {text!r}: expected {_FORM}, found {len(words)}{shorthand}")
        fields, faults = [], []
        for word, place in zip(words, _PLACES, strict=True):
            try:
                fields.append(_field(word, place))
            except ConfigError as error:
                faults.append(f"--cron {text!r}: {error}")
        if faults:
            raise ConfigError("\n".join(faults))
        cron = cls(*fields)
        cron._check(text)
        return cron

    def _check(self, text: str) -> None:
        if (self.day.is_wild and not self.day.is_star and not self.weekday.is_star) or (
            self.weekday.is_wild and not self.weekday.is_star and not self.day.is_star
        ):
            raise ConfigError(
                f"--cron {text!r}: cron implementations disagree on a step of * in one day field beside the other day "
                "field; write the days out, as 1,3,5"
            )
        if self.weekday.is_star and not any(
            day <= _LONGEST[month - 1] for month in self.month.values for day in self.day.values
        ):
            raise ConfigError(f"--cron {text!r}: never fires: no such day in any of its months")

    def __str__(self) -> str:
        return " ".join(field.text for field in self.fields)

    @property
    def fields(self) -> tuple[Field, ...]:
        """The five fields in the order of the notation."""
        return (self.minute, self.hour, self.day, self.month, self.weekday)

    @property
    def either_day(self) -> bool:
        """True if a day matches when one of the two day fields does; otherwise both must match."""
        return not self.day.is_star and not self.weekday.is_star

    def falls_on(self, day: date) -> bool:
        """Return whether the expression fires on a calendar day."""
        by_month, by_week = day.day in self.day.values, day.isoweekday() % 7 in self.weekday.values
        matches = (by_month or by_week) if self.either_day else (by_month and by_week)
        return matches and day.month in self.month.values

    @property
    def is_by_the_clock(self) -> bool:
        """True if cron runs the job by elapsed time, because hour or minute is a wildcard."""
        return self.minute.is_wild or self.hour.is_wild


def _field(word: str, place: _Place) -> Field:
    values: set[int] = set()
    named = False
    for item in word.split(","):
        match = _ITEM.fullmatch(item)
        if match is None:
            raise ConfigError(f"{place.name} {item!r}: expected {_FORM}")
        star, first, last, step = match.groups()
        named |= any(letter.isalpha() for letter in item)
        low, high = (place.low, place.high) if star else (_number(first, place), _number(last or first, place))
        if star and place.names is _DAYS:
            high = 6
        if low > high:
            raise ConfigError(f"{place.name} {item!r}: the range runs backwards; write two, joined by a comma")
        if step is not None and not star and last is None:
            raise ConfigError(
                f"{place.name} {item!r}: cron implementations disagree on a step of one number; write a range"
            )
        if step is not None and int(step) == 0:
            raise ConfigError(f"{place.name} {item!r}: a step of 0")
        values |= set(range(low, high + 1, int(step or 1)))
    if place.names is _DAYS and 7 in values:  # Kubernetes does not accept 7 for Sunday
        values, named = {value % 7 for value in values}, True
    text = ",".join(str(value) for value in sorted(values)) if named else word
    return Field(text, frozenset(values))


def _number(word: str, place: _Place) -> int:
    if word.isdigit():
        number = int(word)
    elif word.lower() in place.names:
        number = place.names.index(word.lower()) + place.low
    else:
        names = f" or {place.names[0]} to {place.names[-1]}" if place.names else ""
        raise ConfigError(f"{place.name} {word!r}: expected {place.low} to {place.high}{names}")
    if not place.low <= number <= place.high:
        raise ConfigError(f"{place.name} {word!r}: expected {place.low} to {place.high}")
    return number


@dataclass(frozen=True)
class ClockChanges:
    """A scheduler's treatment of local times that a clock change skips or repeats."""

    late: bool
    """Treatment of a skipped time: True to run as soon as the gap is over, False not to run that day."""
    twice: bool
    """Treatment of a repeated time: True to run both times, False to run only the first time."""


def firings(cron: Cron, zone: ZoneInfo, changes: ClockChanges, after: datetime) -> Iterator[datetime]:
    """Yield the times after `after` in order, each in `zone`, without end."""
    day = after.astimezone(zone).date() - timedelta(days=1)  # a gap at midnight is attributed to the day before
    while True:
        found: set[datetime] = set()
        if cron.falls_on(day):
            for hour in cron.hour.values:
                for minute in cron.minute.values:
                    found.update(_instants(datetime.combine(day, time(hour, minute)), zone, changes))
        for instant in sorted(found):
            if instant > after:
                yield instant.astimezone(zone)
        day += timedelta(days=1)


def clock_changes(cron: Cron, zone: ZoneInfo, after: datetime, days: int = 366) -> Iterator[tuple[datetime, bool]]:
    """Yield the affected local times (naive) of the coming days.

    The flag is True for a time that a clock change skips and False for one that it repeats.
    """
    first = after.astimezone(zone).date()
    for day in (first + timedelta(days=count) for count in range(days)):
        midnight, next_midnight = (
            datetime.combine(day + timedelta(days=more), time(), zone).utcoffset() for more in (0, 1)
        )
        if midnight == next_midnight or not cron.falls_on(day):
            continue
        for hour in sorted(cron.hour.values):
            for minute in sorted(cron.minute.values):
                local = datetime.combine(day, time(hour, minute))
                before, behind = _offsets(local, zone)
                if before != behind:
                    yield local, before < behind


def _instants(local: datetime, zone: ZoneInfo, changes: ClockChanges) -> list[datetime]:
    """Return the instants, in UTC, at which the job runs for a local time."""
    before, behind = _offsets(local, zone)
    first, second = ((local - offset).replace(tzinfo=timezone.utc) for offset in (before, behind))
    if before == behind:
        return [first]
    if before > behind:
        return [first, second] if changes.twice else [first]
    if not changes.late:
        return []
    while second.astimezone(zone).utcoffset() != behind:  # up to the end of the gap
        second += timedelta(minutes=1)
    return [second]


def _offsets(local: datetime, zone: ZoneInfo) -> tuple[timedelta, timedelta]:
    """Return the offsets from UTC before and after a clock change near this time; without one, they are equal."""
    before, behind = (local.replace(tzinfo=zone, fold=fold).utcoffset() for fold in (0, 1))
    return before or timedelta(), behind or timedelta()
