"""Records what becomes of every shard of a run, once each: scored, failed or quarantined."""

from collections.abc import Sequence
from typing import Protocol

from gradosr.archive.shards import Shard
from gradosr.results.folder import RunFolder
from gradosr.results.outcome import Outcome, PartStats, Progress, Underway
from gradosr.run.driver.prometheus import RunMetrics


class Notes(Protocol):
    """Takes what users should know at once."""

    def warn(self, text: str) -> None:
        """Report trouble that the run survives."""

    def lost(self, shard: str, fate: str, reason: str) -> None:
        """Report a shard that becomes no part: `failed` or `quarantined`."""


class Verdicts:
    """Verdicts on the shards of a run; of two on one shard, the first counts."""

    def __init__(self, folder: RunFolder, notes: Notes, metrics: RunMetrics, shards: Sequence[Shard]) -> None:
        self._folder, self._notes, self._metrics = folder, notes, metrics
        self.open = {shard.part: shard for shard in shards}
        """Shards without a verdict, by part name."""
        self.progress = Progress(len(shards), total_bytes=sum(shard.size for shard in shards))
        self.outcome = Outcome()

    def hear(self, part: str, underway: Underway) -> None:
        """Note how far a worker is with a shard; of two workers on one shard, the one that is further counts."""
        shard = self.open.get(part)
        if shard is not None:
            known, size = self.progress.underway.get(part, Underway(0, 0)), min(underway.bytes, shard.size)
            self.progress.underway[part] = Underway(max(known.images, underway.images), max(known.bytes, size))

    def score(self, shard: Shard, stats: PartStats) -> None:
        """Record that a shard became a part."""
        if self._close(shard):
            self.outcome.scored[shard.part] = stats
            self.progress.counts.update(stats.counts)
            self._metrics.add(stats)

    def fail(self, shard: Shard, reason: str) -> None:
        """Record that this run gives a shard up; the next one tries it again."""
        if self._close(shard):
            self.outcome.failed[shard.name] = reason
            self.progress.failed += 1
            self._report(shard, "failed", reason)

    def quarantine(self, shard: Shard, reason: str, attempts: int) -> None:
        """Mark a shard that cannot be read at all or kills its workers."""
        if self._close(shard):
            self._folder.quarantine(shard, reason, attempts)
            self.outcome.quarantined[shard.part] = reason
            self.progress.quarantined += 1
            self._report(shard, "quarantined", reason)

    def _close(self, shard: Shard) -> bool:
        """Settle a shard; answer False where a faster copy settled it already."""
        if self.open.pop(shard.part, None) is None:
            return False
        self.progress.underway.pop(shard.part, None)
        self.progress.done += 1
        self.progress.done_bytes += shard.size
        return True

    def _report(self, shard: Shard, fate: str, reason: str) -> None:
        self._notes.lost(shard.name, fate, reason)
        self._metrics.settle(fate)
