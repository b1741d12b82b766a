"""The progress of a run and the outcome of its shards: small facts that workers, driver and display share."""

import time
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

SHOWN = 10
"""Most shards that are named in a summary, and while the work goes on."""


class Underway(NamedTuple):
    """Progress on a shard that is at work."""

    images: int
    """Number of images scored."""
    bytes: int
    """Bytes that these images take in the shard, about."""


@dataclass
class Progress:
    """The progress on the shards that were pending when the run started."""

    total: int
    done: int = 0
    """Number of settled shards: finished with a part, failed or quarantined."""
    total_bytes: int = 0
    """Bytes of all pending shards; 0 if not known."""
    done_bytes: int = 0
    failed: int = 0
    quarantined: int = 0
    workers: int = 0
    """Number of workers that are ready."""
    counts: Counter[str] = field(default_factory=Counter)
    """Counts of the shards done: rows, unknown, and one per status."""
    underway: dict[str, "Underway"] = field(default_factory=dict)
    """Progress on shards at work, by part name, as last heard of."""
    first_ready: float | None = None
    """Value of time.monotonic() when the first worker was ready; start-up does not count towards the rate."""

    @property
    def seconds(self) -> float:
        """The seconds since the first worker was ready."""
        return 0.0 if self.first_ready is None else time.monotonic() - self.first_ready

    @property
    def images(self) -> int:
        """The number of images scored so far, those of unfinished shards included."""
        return self.counts["rows"] + sum(one.images for one in self.underway.values())

    @property
    def share(self) -> float:
        """The share of the work that is done, from 0 to 1; by bytes if known, because shards differ in size."""
        if self.total_bytes:
            return min(1.0, (self.done_bytes + sum(one.bytes for one in self.underway.values())) / self.total_bytes)
        return self.done / self.total if self.total else 1.0

    def facts(self) -> dict[str, float]:
        """Return the progress as plain data, for others to read while the run goes on."""
        return {
            "pending_shards": self.total,
            "done": self.done,
            "failed": self.failed,
            "quarantined": self.quarantined,
            "workers": self.workers,
            "rows": self.counts["rows"],
            "ok": self.counts["ok"],
            "unknown": self.counts["unknown"],
            "underway": self.images - self.counts["rows"],
            "share": round(self.share, 4),
            "seconds": round(self.seconds, 3),
        }

    @property
    def remaining(self) -> float | None:
        """The seconds to go at the pace so far; None before there is a pace."""
        return self.seconds * (1 / self.share - 1) if self.share else None


class PartStats(NamedTuple):
    """The counts and seconds in a part's footer, which are all that a worker sends back."""

    counts: Mapping[str, int]
    """Counts: rows, unknown, and one per status."""
    seconds: Mapping[str, float]
    """Seconds by stage: read, decode, score, write.

    Decoding adds up its threads; writing includes the PUT of a part just published. Reading and decoding run ahead of
    scoring, and writing goes on while the next shard is scored.
    """
    passed_over: Mapping[str, int] = {}
    """Number of members of the shard that are no images, by kind."""


class PackedStats(MutableMapping[str, PartStats]):
    """Counts and seconds by part name. A million parts take 0.14 GB; in dictionaries they would take 0.9."""

    def __init__(self) -> None:
        self._names: list[tuple[tuple[str, ...], ...]] = []  # each combination of names that a part has
        self._numbers: dict[tuple[tuple[str, ...], ...], int] = {}  # the same -> its place in the list
        self._rows: dict[str, bytes] = {}  # that place and the values, as float64

    def __setitem__(self, part: str, stats: PartStats) -> None:
        names = tuple(tuple(one) for one in stats)
        if names not in self._numbers:
            self._numbers[names] = len(self._names)
            self._names.append(names)
        values = chain.from_iterable(one.values() for one in stats)
        self._rows[part] = array("d", [self._numbers[names], *values]).tobytes()

    def __getitem__(self, part: str) -> PartStats:
        number, *values = array("d", self._rows[part])
        given = iter(values)
        counts, seconds, passed_over = self._names[int(number)]
        return PartStats(
            {name: int(next(given)) for name in counts},
            {name: next(given) for name in seconds},
            {name: int(next(given)) for name in passed_over},
        )

    def __delitem__(self, part: str) -> None:
        del self._rows[part]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


@dataclass
class Outcome:
    """The outcome of the pending shards."""

    scored: MutableMapping[str, PartStats] = field(default_factory=PackedStats)
    """Counts and seconds of the scored parts, by part name."""
    quarantined: dict[str, str] = field(default_factory=dict)
    """The reason for each quarantined part, by part name."""
    failed: dict[str, str] = field(default_factory=dict)
    """The reason for each failed shard, by shard name; the next run retries them."""
    interrupted: bool = False
    """True if the run was asked to end before every shard had been tried."""
