"""Which worker gets which shard, without Ray: order, prefetch, suspects, stragglers."""

import math

import pytest

from gradosr.archive.shards import Shard
from gradosr.run.driver import handout
from gradosr.run.driver.cluster import gpu_share
from gradosr.run.driver.faults import FaultLedger
from gradosr.run.driver.handout import HandOut, WorkerHandle

A, B, C, D = SHARDS = tuple(Shard(name, f"/{name}", "1", 10) for name in "ABCD")
NODES = {"a", "b"}


def worker(node: str = "a") -> WorkerHandle:
    return WorkerHandle(None, 0.0, node, ready=True)


def holds(worker: WorkerHandle) -> str:
    """Name the shard a worker is working on, and the one it prefetches."""
    return "".join(shard.name if shard else "-" for shard in (worker.current, worker.prefetched))


def waiting(handout: HandOut) -> str:
    return "".join(shard.name for shard in handout.waiting)


def test_shards_go_out_in_order_and_no_two_workers_prefetch_the_same() -> None:
    handout, workers = HandOut(SHARDS, FaultLedger(1)), [worker(), worker()]
    assert all(handout.assign(one, workers) for one in workers)
    assert [holds(one) for one in workers] == ["AB", "CD"]
    assert waiting(handout) == "BD"  # a prefetched shard waits until its turn
    assert handout.assign(workers[0], workers)
    assert [holds(one) for one in workers] == ["B-", "CD"]


def test_a_prefetched_shard_is_taken_by_another_worker_where_nothing_else_waits() -> None:
    handout, workers = HandOut((A, B), FaultLedger(1)), [worker(), worker()]
    assert all(handout.assign(one, workers) for one in workers)
    assert [holds(one) for one in workers] == ["A-", "B-"]
    assert not handout.assign(workers[0], workers)


def test_suspects_are_worked_on_alone() -> None:
    faults = FaultLedger(9)
    faults.worker_failed("other", "b", "killed", NODES, prefetched=A.part)
    handout, one = HandOut((B, A, C), faults), worker()
    assert handout.assign(one, [one])
    assert holds(one) == "BC"
    assert handout.assign(one, [one])
    assert holds(one) == "C-"
    assert handout.assign(one, [one])
    assert holds(one) == "A-"
    handout, one = HandOut((A, B), faults), worker()
    assert handout.assign(one, [one])
    assert holds(one) == "A-"


def test_a_shard_waits_for_a_node_it_has_not_failed_on() -> None:
    faults = FaultLedger(9)
    faults.worker_failed(A.part, "a", "killed", NODES)
    handout, here, there = HandOut((A,), faults), worker("a"), worker("b")
    assert not handout.assign(here, [here, there])
    assert handout.assign(there, [here, there])
    handout.put_back(A)
    assert handout.assign(here, [here]), "nowhere else"


def test_a_shard_that_is_put_back_waits_behind_all_others() -> None:
    handout, one = HandOut((A, B), FaultLedger(1)), worker()
    handout.assign(one, [one])
    handout.put_back(A)
    assert waiting(handout) == "BA"


def test_the_most_overdue_shard_is_a_straggler_unless_it_has_a_copy() -> None:
    fair, late, later, copied = (worker() for _ in range(4))
    hand_out = HandOut(SHARDS, FaultLedger(1))
    for one, shard, since in ((fair, A, 99.0), (late, B, 20.0), (later, C, 10.0), (copied, D, 0.0)):
        one.current, one.since = shard, since
    twin = worker()
    twin.current = D
    running = [fair, late, later, copied, twin]
    assert hand_out.straggler(running, 100.0) is None, "the usual pace is not known yet"
    hand_out.note_pace(A, seconds=10.0)
    assert hand_out.straggler(running, 100.0) == (C, 90.0)
    assert hand_out.straggler([fair], 99.0 + handout.STRAGGLER_SECONDS) is None


@pytest.mark.parametrize(("workers", "gpus"), [(1, 1), (8, 8), (12, 8), (3, 2), (1, 4), (7, 2), (100, 8)])
def test_all_workers_fit_on_the_gpus_there_are(workers: int, gpus: int) -> None:
    share = gpu_share(workers, gpus)
    assert 0 < share <= 1
    assert gpus * math.floor(1 / share + 1e-9) >= workers, "Ray places whole shares on each GPU"


def test_without_gpus_a_worker_takes_none() -> None:
    assert gpu_share(4, 0.0) == 0.0
