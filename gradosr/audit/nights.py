"""The nights of an archive: the result of each screening, and where it is stored."""

import gzip
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, NamedTuple

from gradosr.errors import NotFound
from gradosr.results.folder import RunFolder
from gradosr.store import Store
from gradosr.store.threads import threads

FOLDER, NIGHT, ARCHIVE, TOLD = "screenings", "screening.json", "archive.json.gz", "told.json"
HEARD = "told-{}.json"
MARKS = "told"  # with which the names of both begin


@dataclass(frozen=True)
class Counts:
    """Counts of the rows that a night added."""

    rows: int
    images: int
    """Number of rows with a score."""
    unknown: int

    @property
    def bad(self) -> int:
        """The number of rows without a score."""
        return self.rows - self.images


class Seen(NamedTuple):
    """A shard version of the archive, and the night in which it was first seen."""

    shard: str
    night: str
    """The night in which this version was new."""


@dataclass(frozen=True)
class Verdict:
    """The result of one gate."""

    gate: str
    bound: float
    found: float | None
    """The measured value; None if there was nothing to measure, for the reason given in `why`."""
    tripped: bool
    why: str


@dataclass(frozen=True)
class Night:
    """One screening, as stored in screening.json."""

    night: str
    """The date of the night, with a number appended if it is not the first night of that date."""
    made: str
    """The time at which the screening was made, in ISO 8601."""
    counts: Counts
    shards: int
    """Number of shards in the archive."""
    new_shards: int
    """Number of shards that are new or changed since the night before."""
    missing: tuple[str, ...]
    """Names of shards of the night before that no longer exist."""
    verdicts: tuple[Verdict, ...]
    unknown_share: Mapping[str, float] | None = None
    """Estimate, low and high of the share of unknown images among the new ones; None if there is no figure."""
    receivers: tuple[str, ...] = ()
    """Receivers that the config named that night; one that is added later is not told of it."""

    @property
    def tripped(self) -> list[Verdict]:
        """The verdicts of the gates that tripped."""
        return [verdict for verdict in self.verdicts if verdict.tripped]

    def document(self) -> dict[str, Any]:
        """Return the content of screening.json, which is also the body sent to a webhook."""
        return {"schema": 1, **asdict(self), "tripped": [verdict.gate for verdict in self.tripped]}

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> "Night":
        """Rebuild a night from its document."""
        facts = {name: document[name] for name in ("night", "made", "shards", "new_shards")}
        return cls(
            **facts,
            counts=Counts(**document["counts"]),
            missing=tuple(document["missing"]),
            verdicts=tuple(Verdict(**verdict) for verdict in document["verdicts"]),
            unknown_share=document.get("unknown_share"),
            receivers=tuple(document.get("receivers", ())),
        )


class History:
    """The nights of one results folder. Their names alone are listed: each night holds hundreds of pictures."""

    def __init__(self, store: Store, folder: RunFolder) -> None:
        self._store, self._folder = store, folder
        self._read: dict[str, Night | None] = {}
        self._marks: dict[str, set[str]] = {}

    def nights(self, last: int) -> list[Night]:
        """Read the last nights, oldest first; `last` is their number at most."""
        names, found = self._names, list[Night]()
        while names and len(found) < last:
            wanted = len(found) - last
            names, newest = names[:wanted], names[wanted:]
            with threads(8, "nights") as pool:
                found = [*filter(None, pool.map(self._night, newest)), *found]
        return found

    def archive(self) -> dict[str, Seen]:
        """Read the shard versions of the last night by part name; the mapping is empty before the first night."""
        last = self.nights(1)
        if not last:
            return {}
        document = json.loads(gzip.decompress(self._store.read(self.path(last[0].night, ARCHIVE))))
        return {part: Seen(*seen) for part, seen in document.items()}

    def next_name(self, now: datetime) -> str:
        """Return a name for a night that starts at `now`; it sorts after all existing names."""
        date = now.date().isoformat()
        of_today = [name for name in self._names if name[: len(date)] == date and self._night(name)]
        return f"{date}.{len(of_today) + 1:02}" if of_today else date

    def commit(self, night: Night, archive: Mapping[str, Seen]) -> None:
        """Store a night and the archive as it was then."""
        self._store.write(self.path(night.night, ARCHIVE), gzip.compress(json.dumps(archive).encode(), mtime=0))
        self._store.write(self.path(night.night, NIGHT), json.dumps(night.document(), indent=2).encode())
        self._names = sorted({*self._names, night.night})
        self._read[night.night] = night

    def untold(self, last: int) -> list[Night]:
        """Read those of the last nights that are not marked as told, oldest first."""
        nights = self.nights(last)
        with threads(8, "marks") as pool:
            return [
                night for night, marks in zip(nights, pool.map(self._marked, nights), strict=True) if TOLD not in marks
            ]

    def age(self, night: Night) -> int:
        """Return the number of nights from this one to the newest, both counted."""
        return len(self._names) - self._names.index(night.night)

    def has_heard(self, receiver: str, night: Night) -> bool:
        """Return whether a night that has still to be reported was reported to this receiver."""
        return HEARD.format(receiver) in self._marked(night)

    def mark_heard(self, receiver: str, night: Night) -> None:
        """Record that the tripped gates of a night were reported to one of several receivers."""
        self._mark(night, HEARD.format(receiver))

    def mark_told(self, night: Night) -> None:
        """Record that nothing of a night has to be reported any longer."""
        self._mark(night, TOLD)

    def _mark(self, night: Night, mark: str) -> None:
        self._store.write(self.path(night.night, mark), b"{}")
        self._marked(night).add(mark)

    def _marked(self, night: Night) -> set[str]:
        """Return the names of the marks of a night, whose names all begin alike."""
        if night.night not in self._marks:
            marks = self._store.list(self.path(night.night, MARKS))
            self._marks[night.night] = {stored.uri.rpartition("/")[2] for stored in marks}
        return self._marks[night.night]

    def _night(self, name: str) -> Night | None:
        """Read a night; None if it was killed before it was complete."""
        if name not in self._read:
            try:
                self._read[name] = Night.of(json.loads(self._store.read(self.path(name, NIGHT))))
            except NotFound:
                self._read[name] = None
        return self._read[name]

    def path(self, *names: str) -> str:
        """Return the URI of a file in the screenings folder."""
        return self._folder.path(FOLDER, *names)

    @cached_property
    def _names(self) -> list[str]:
        """The names of all nights in order, those that were killed included."""
        try:
            return list(self._store.folders(self.path("")))
        except NotFound:
            return []  # a local folder that does not exist yet
