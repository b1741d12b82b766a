"""Which worker gets which shard, without Ray: order, prefetch, suspects, stragglers."""

import math

import pytest

from gradosr.archive.shards import Shard
from gradosr.run.driver import handout
from gradosr.run.driver.cluster import gpu_share
from gradosr.run.driver.faults import FaultLedger
from gradosr.run.driver.handout import HandOut, Turn, WorkerHandle

A, B, C, D = SHARDS = tuple(Shard(name, f"/{name}", "1", 10) for name in "ABCD")
NODES = {"a", "b"}
NOW = 100.0


def worker(node: str = "a") -> WorkerHandle:
    return WorkerHandle(None, 0.0, node, ready=True)


def holds(worker: WorkerHandle) -> str:
    """Name the shards a worker is working on, and the one it prefetches."""
    shards = [*(turn.shard for turn in worker.turns), worker.prefetched]
    return "".join(shard.name if shard else "-" for shard in shards)


def publish(worker: WorkerHandle) -> WorkerHandle:
    """Let what a worker has be published."""
    worker.turns.clear()
    return worker


def waiting(handout: HandOut) -> str:
    return "".join(shard.name for shard in handout.waiting)


def test_shards_go_out_in_order_and_no_two_workers_prefetch_the_same() -> None:
    handout, workers = HandOut(SHARDS, FaultLedger(1)), [worker(), worker()]
    assert all(handout.assign(one, workers, NOW) for one in workers)
    assert [holds(one) for one in workers] == ["AB", "CD"]
    assert waiting(handout) == "BD"  # a prefetched shard waits until its turn
    assert handout.assign(publish(workers[0]), workers, NOW)
    assert [holds(one) for one in workers] == ["B-", "CD"]


def test_a_prefetched_shard_is_taken_by_another_worker_where_nothing_else_waits() -> None:
    handout, workers = HandOut((A, B), FaultLedger(1)), [worker(), worker()]
    assert all(handout.assign(one, workers, NOW) for one in workers)
    assert [holds(one) for one in workers] == ["A-", "B-"]
    assert not handout.assign(publish(workers[0]), workers, NOW)


def test_a_worker_scores_one_shard_while_the_part_of_another_is_published() -> None:
    handout, one = HandOut(SHARDS, FaultLedger(1)), worker()
    assert one.free
    first = handout.assign(one, [one], NOW)
    assert first
    assert not one.free
    first.scored = True
    assert one.free
    second = handout.assign(one, [one], NOW)
    assert second
    assert holds(one) == "ABC"
    second.scored = True
    assert not one.free, "a second part would wait, and a third be made"
    one.turns.remove(first)
    assert one.free


def test_suspects_are_worked_on_alone() -> None:
    faults = FaultLedger(9)
    faults.worker_failed("other", "b", "killed", NODES, beside=[A.part])
    handout, one = HandOut((B, A, C), faults), worker()
    assert handout.assign(one, [one], NOW)
    assert holds(one) == "BC"
    assert handout.assign(publish(one), [one], NOW)
    assert holds(one) == "C-"
    one.turns[0].scored = True
    assert not handout.assign(one, [one], NOW), "C is still to be published"
    assert handout.assign(publish(one), [one], NOW)
    assert holds(one) == "A-"
    handout.put_back(B)
    one.turns[0].scored = True
    assert not handout.assign(one, [one], NOW), "A is still to be published"
    handout, one = HandOut((A, B), faults), worker()
    assert handout.assign(one, [one], NOW)
    assert holds(one) == "A-"


def test_a_shard_waits_for_a_node_it_has_not_failed_on() -> None:
    faults = FaultLedger(9)
    faults.worker_failed(A.part, "a", "killed", NODES)
    handout, here, there = HandOut((A,), faults), worker("a"), worker("b")
    assert not handout.assign(here, [here, there], NOW)
    assert handout.assign(there, [here, there], NOW)
    handout.put_back(A)
    assert handout.assign(here, [here], NOW), "nowhere else"


def test_a_shard_that_is_put_back_waits_behind_all_others() -> None:
    handout, one = HandOut((A, B), FaultLedger(1)), worker()
    handout.assign(one, [one], NOW)
    handout.put_back(A)
    assert waiting(handout) == "BA"


def test_the_most_overdue_shard_is_a_straggler_unless_it_has_a_copy() -> None:
    hand_out = HandOut(SHARDS, FaultLedger(1))
    running = [Turn(A, 99.0), Turn(B, 20.0), Turn(C, 10.0, scored=True), Turn(D, 0.0), Turn(D, 100.0)]
    assert hand_out.straggler(running, 100.0) is None, "the usual pace is not known yet"
    hand_out.note_pace(A, seconds=10.0)
    assert hand_out.straggler(running, 100.0) == (C, 90.0)
    assert hand_out.straggler(running[:1], 99.0 + handout.STRAGGLER_SECONDS) is None


@pytest.mark.parametrize(("workers", "gpus"), [(1, 1), (8, 8), (12, 8), (3, 2), (1, 4), (7, 2), (100, 8)])
def test_all_workers_fit_on_the_gpus_there_are(workers: int, gpus: int) -> None:
    share = gpu_share(workers, gpus)
    assert 0 < share <= 1
    assert gpus * math.floor(1 / share + 1e-9) >= workers, "Ray places whole shares on each GPU"


def test_without_gpus_a_worker_takes_none() -> None:
    assert gpu_share(4, 0.0) == 0.0
