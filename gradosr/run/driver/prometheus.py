"""Figures of a run for Prometheus, through Ray's metrics."""

from ray.util import metrics

from gradosr.results.outcome import PartStats
from gradosr.results.part import STATUSES


class RunMetrics:
    """A run for Prometheus, at the metrics port of the driver's node; Ray puts `ray_` before the names.

    Counters cover this driver alone: a run that another driver resumes goes on in a series of its own with the same
    `run`. Gauges vanish with the driver. A driver connected by ray:// has no node, and nothing is served.
    """

    def __init__(self, run: str) -> None:
        self._run = {"run": run}
        self._images = metrics.Counter(
            "gradosr_images_total", "Images in published parts, by status.", ("run", "status")
        )
        self._unknown = metrics.Counter("gradosr_unknown_images_total", "Images over the threshold.", ("run",))
        self._shards = metrics.Counter(
            "gradosr_shards_total", "Shards by outcome: done, failed or quarantined.", ("run", "outcome")
        )
        self._seconds = metrics.Counter(
            "gradosr_stage_seconds_total", "Seconds spent by all workers, by stage.", ("run", "stage")
        )
        self._queue = metrics.Gauge("gradosr_queue_shards", "Shards waiting for a worker.", ("run",))
        self._workers = metrics.Gauge("gradosr_workers", "Workers ready to score.", ("run",))

    def add(self, stats: PartStats) -> None:
        """Count a shard that became a part."""
        self.settle("done")
        for status in STATUSES:
            self._grow(self._images, stats.counts.get(status, 0), status=status)
        self._grow(self._unknown, stats.counts.get("unknown", 0))
        for stage, spent in stats.seconds.items():
            self._grow(self._seconds, spent, stage=stage)

    def settle(self, outcome: str) -> None:
        """Count a shard that is done, failed or quarantined."""
        self._grow(self._shards, 1, outcome=outcome)

    def update(self, workers: int, queue: int) -> None:
        """Set the numbers of ready workers and of waiting shards."""
        self._workers.set(workers, self._run)
        self._queue.set(queue, self._run)

    def _grow(self, counter: metrics.Counter, by: float, **tags: str) -> None:
        if by > 0:  # Ray refuses to add nothing
            counter.inc(by, self._run | tags)
