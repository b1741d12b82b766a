"""One statement about one image, as a file of labels has it."""

from dataclasses import dataclass
from datetime import datetime, timezone

from gradosr.errors import InputError


@dataclass(frozen=True, slots=True)
class Said:
    """A row of a file of labels; nothing of it is checked against the run."""

    where: str
    """The file and the row, for messages."""
    key: str
    label: str
    """The label as it was written; blank if the image was left out."""
    who: str | None
    """The person, if the file tells."""
    when: datetime | None
    """The time in UTC, if the file tells."""
    source: str
    id: str = ""
    """The image's id where the file has one: keys can suffer in a spreadsheet, ids rarely do."""
    drawn: float | None = None


def in_utc(when: datetime | None) -> datetime | None:
    """Return a time in UTC; one without a time zone is taken to be in UTC."""
    if when is None:
        return None
    return when.replace(tzinfo=timezone.utc) if when.tzinfo is None else when.astimezone(timezone.utc)


def parsed_time(where: str, text: str) -> datetime | None:
    """Return a time written in ISO 8601; None for no text. Raises InputError for anything else."""
    if not text.strip():
        return None
    try:
        return in_utc(datetime.fromisoformat(text.strip().replace("Z", "+00:00")))
    except (ValueError, OverflowError) as error:
        raise InputError(f"{where}: {text.strip()!r} is not a time such as 2026-11-28T09:30:00+00:00") from error
