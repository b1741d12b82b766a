"""Formatting of text for people and for logs: safe output for terminals, durations, reasons, lines of a JSON log."""

import json
from datetime import datetime, timezone
from typing import Any

NBSP = "\u00a0"


def printable(text: str) -> str:
    """Escape control characters in text from data, so that a terminal shows them instead of obeying them.

    No-break spaces, which pages need and terminals do not, become spaces.
    """
    text = text.replace(NBSP, " ")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def plural(number: int, one: str, many: str | None = None) -> str:
    """Format a number with its noun: 1 shard, 2,000 shards."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def duration(seconds: float) -> str:
    """Format seconds as M:SS, or H:MM:SS from one hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def reason(error: Exception) -> str:
    """Return a foreign library's error message as one printable line of at most 200 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return "".join(character if character.isprintable() else "?" for character in text)[:200]


def log_line(event: str, text: str, level: str = "info", **facts: Any) -> str:
    """Return a line of the JSON log: time (ISO 8601, UTC), level (info, warning, error), event, message, facts."""
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    return json.dumps({"time": now, "level": level, "event": event, "message": text.replace(NBSP, " "), **facts})
