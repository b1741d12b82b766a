"""Asks workers how far they are, so that progress moves while shards of many minutes are at work."""

from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from gradosr.errors import GradosrError
from gradosr.run.driver.actor import TELLING
from gradosr.run.driver.handout import WorkerHandle
from gradosr.run.driver.verdicts import Verdicts

SECONDS = 1.0  # between two questions to one worker
ASKED_PER_SECOND = 100  # workers; of more, each is asked less often


class Watch:
    """Questions to workers and what they answered. Nothing waits for an answer, and a lost one is not missed."""

    def __init__(self, verdicts: Verdicts, clock: Callable[[], float]) -> None:
        self._verdicts, self._clock = verdicts, clock
        self._asked: dict[Any, WorkerHandle] = {}  # reference -> who owes the answer
        self._next = 0.0

    def look(self, ready: Sequence[WorkerHandle]) -> None:
        """Take the answers that are there and ask again, if it is time to; called at every turn of the driver."""
        now = self._clock()
        if now < self._next:
            return
        self._next = now + max(SECONDS, len(ready) / ASKED_PER_SECOND)
        if self._asked:
            answered, _ = ray.wait(list(self._asked), num_returns=len(self._asked), timeout=0)
            for reference in answered:
                del self._asked[reference]
                self._take(reference)
        owing = {id(worker) for worker in self._asked.values()}
        for worker in ready:
            if worker.turns and id(worker) not in owing:
                self._asked[worker.actor.underway.options(concurrency_group=TELLING).remote()] = worker

    def _take(self, reference: Any) -> None:
        try:
            told = ray.get(reference, timeout=0)
        except (RayError, GradosrError):  # the call that does the work tells it, too
            return
        for part, underway in told.items():
            self._verdicts.hear(part, underway)
