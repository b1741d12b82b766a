"""The nights of an archive: what each screening found, and where it is kept."""

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

FOLDER, NIGHT, ARCHIVE, TOLD = "screenings", "screening.json", "archive.json.gz", "told.json"


@dataclass(frozen=True)
class Counts:
    """Of the rows that a night added."""

    rows: int
    images: int
    """With a score."""
    unknown: int

    @property
    def bad(self) -> int:
        """Without a score."""
        return self.rows - self.images


class Seen(NamedTuple):
    """A shard version of the archive."""

    shard: str
    night: str
    """In which it was new."""


@dataclass(frozen=True)
class Verdict:
    """One gate."""

    gate: str
    bound: float
    found: float | None
    """None where there is nothing to measure it on, which `why` says."""
    tripped: bool
    why: str


@dataclass(frozen=True)
class Night:
    """One screening, as screening.json keeps it."""

    night: str
    """Its date, with a number behind it where it is not the date's first."""
    made: str
    """ISO 8601."""
    counts: Counts
    shards: int
    """Of the archive."""
    new_shards: int
    """New or changed since the night before."""
    missing: tuple[str, ...]
    """Shards of the night before that are gone."""
    verdicts: tuple[Verdict, ...]

    @property
    def tripped(self) -> list[Verdict]:
        """The gates to be told of."""
        return [verdict for verdict in self.verdicts if verdict.tripped]

    def document(self) -> dict[str, Any]:
        """screening.json, and what a webhook gets."""
        return {"schema": 1, **asdict(self), "tripped": [verdict.gate for verdict in self.tripped]}

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> "Night":
        """What `document` was made of."""
        facts = {name: document[name] for name in ("night", "made", "shards", "new_shards")}
        return cls(
            **facts,
            counts=Counts(**document["counts"]),
            missing=tuple(document["missing"]),
            verdicts=tuple(Verdict(**verdict) for verdict in document["verdicts"]),
        )


class History:
    """The nights of one results folder, which is listed once: all files of all nights lie there."""

    def __init__(self, store: Store, folder: RunFolder) -> None:
        self._store, self._folder = store, folder

    def nights(self, last: int) -> list[Night]:
        """The last ones, oldest first."""
        return [Night.of(json.loads(self._store.read(self.path(name, NIGHT)))) for name in self._names[-last:]]

    def archive(self) -> dict[str, Seen]:
        """By part, as of the last night; empty before the first."""
        if not self._names:
            return {}
        document = json.loads(gzip.decompress(self._store.read(self.path(self._names[-1], ARCHIVE))))
        return {part: Seen(*seen) for part, seen in document.items()}

    def next_name(self, now: datetime) -> str:
        """Of a night that begins now: in order behind all others."""
        date = now.date().isoformat()
        of_today = [name for name in self._names if name[: len(date)] == date]
        return f"{date}.{len(of_today) + 1:02}" if of_today else date

    def commit(self, night: Night, archive: Mapping[str, Seen]) -> None:
        """Keep a night."""
        self._store.write(self.path(night.night, ARCHIVE), gzip.compress(json.dumps(archive).encode(), mtime=0))
        self._store.write(self.path(night.night, NIGHT), json.dumps(night.document(), indent=2).encode())
        self._names.append(night.night)

    def untold(self, night: Night) -> bool:
        """Whether its tripped gates are still to be told."""
        if not night.tripped:
            return False
        try:
            self._store.read(self.path(night.night, TOLD))
        except NotFound:
            return True
        return False

    def mark_told(self, night: Night) -> None:
        """They were."""
        self._store.write(self.path(night.night, TOLD), b"{}")

    def path(self, *names: str) -> str:
        """URI of something among the screenings."""
        return self._folder.path(FOLDER, *names)

    @cached_property
    def _names(self) -> list[str]:
        start, end = len(self.path("")), f"/{NIGHT}"
        listed = self._store.list(self.path(""))
        try:
            return sorted(stored.uri[start:].removesuffix(end) for stored in listed if stored.uri.endswith(end))
        except NotFound:
            return []  # a local folder that is not there yet
