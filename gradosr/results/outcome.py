"""Where a run stands and what became of its shards: small facts that workers, driver and display share."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

SHOWN = 10
"""Shards named in a summary, and while the work goes on."""


@dataclass
class Progress:
    """Of the shards that were pending when the run started."""

    total: int
    done: int = 0
    """Settled: with a part, failed or quarantined."""
    total_bytes: int = 0
    """0: not known."""
    done_bytes: int = 0
    failed: int = 0
    quarantined: int = 0
    workers: int = 0
    """Ready ones."""
    counts: Counter[str] = field(default_factory=Counter)
    """rows, unknown and one per status, of the shards done."""
    first_ready: float | None = None
    """time.monotonic() when the first worker was ready: start-up is not part of the rate."""

    @property
    def seconds(self) -> float:
        """Since the first worker was ready."""
        return 0.0 if self.first_ready is None else time.monotonic() - self.first_ready

    @property
    def share(self) -> float:
        """Of the work that is done, 0 to 1: by bytes where they are known, because shards differ in size."""
        if self.total_bytes:
            return self.done_bytes / self.total_bytes
        return self.done / self.total if self.total else 1.0

    def facts(self) -> dict[str, float]:
        """For others to read while the run goes on."""
        return {
            "pending_shards": self.total,
            "done": self.done,
            "failed": self.failed,
            "quarantined": self.quarantined,
            "workers": self.workers,
            "rows": self.counts["rows"],
            "ok": self.counts["ok"],
            "unknown": self.counts["unknown"],
            "seconds": round(self.seconds, 3),
        }

    @property
    def remaining(self) -> float | None:
        """Seconds to go at the pace so far; None before there is one."""
        return self.seconds * (1 / self.share - 1) if self.share else None


class PartStats(NamedTuple):
    """What the footer of a part says of it; all that a worker sends back."""

    counts: Mapping[str, int]
    """rows, unknown, and one per status."""
    seconds: Mapping[str, float]
    """By stage: read, decode (its threads added up), score, write (of a part just published, with its PUT).

    Reading and decoding run ahead of scoring.
    """


@dataclass
class Outcome:
    """What became of the pending shards."""

    scored: dict[str, PartStats] = field(default_factory=dict)
    """By part name."""
    quarantined: dict[str, str] = field(default_factory=dict)
    """Part name -> reason."""
    failed: dict[str, str] = field(default_factory=dict)
    """Shard name -> reason; retried by the next run."""
    interrupted: bool = False
    """Whether the run was asked to end before every shard had its turn."""
