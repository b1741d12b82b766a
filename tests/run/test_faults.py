"""Decisions of a run about its faults, as sequences of facts: no Ray, no workers, no time."""

from collections.abc import Callable

import pytest

from gradosr.errors import BundleError
from gradosr.run.driver.faults import LOAD_FAILURES, NODE_FAILURES, NODE_LOSSES, FaultLedger

ONE, TWO, THREE = {"a"}, {"a", "b"}, {"a", "b", "c"}
CAUSE = BundleError("no weights")

Fact = Callable[[FaultLedger], str]


# Facts, each with a short word for what the ledger decides: first about the shard, then about the worker and its node.


def fails(part: str, node: str = "a", beside: str = "", nodes: set[str] = TWO) -> Fact:
    """Let a worker on a node fail over a shard, perhaps with others open."""
    return lambda ledger: _said(*ledger.worker_failed(part, node, "killed", nodes, beside=beside))


def evicted(part: str, node: str = "a") -> Fact:
    """Let Ray evict a worker over a shard, because its node ran low on memory."""
    return lambda ledger: _said(*ledger.worker_failed(part, node, "evicted", TWO, marks=False))


def goes(part: str, node: str = "a", nodes: set[str] = TWO) -> Fact:
    """Let a node go with the worker on it."""
    return lambda ledger: _said(*ledger.node_lost(part, node, "gone", nodes))


def no_load(node: str = "a", nodes: set[str] = TWO, ready: bool = False) -> Fact:
    """Let a worker fail while it loads; the next one may not."""
    return lambda ledger: _said(None, ledger.load_failed(node, "died", nodes, ready=ready))


def cannot(node: str = "a", nodes: set[str] = TWO, ready: bool = False) -> Fact:
    """Let no worker load on a node."""
    return lambda ledger: _said(None, ledger.cannot_load(node, CAUSE, nodes, ready=ready))


def loads(node: str = "a") -> Fact:
    return lambda ledger: str(ledger.worker_loaded(node) or "-")


def scores(node: str = "a") -> Fact:
    return lambda ledger: str(ledger.shard_scored(node) or "-")


def may(part: str, node: str, *others: str) -> Fact:
    """Ask whether a shard may be tried on a node, while ready workers are on it and on others."""
    return lambda ledger: "yes" if ledger.may_try(part, node, {node, *others}) else "no"


def suspects(*parts: str) -> Fact:
    return lambda ledger: "yes" if ledger.suspects == set(parts) else f"no, {sorted(ledger.suspects)}"


def _said(fate: object, place: object) -> str:
    action = "" if fate is None else f"{fate.action} "
    words = ["replace"] * place.replace + ["avoid"] * bool(place.avoid) + ["evict"] * place.evict
    return action + " ".join(words + ["end"] * bool(place.end) or ["nothing"])


AGAIN, OUT, GIVEN_UP = "retry replace", "quarantine replace", "fail replace"
SEQUENCES: dict[str, list[tuple[Fact, str]]] = {
    # A shard and its attempts (at most 2 here).
    "a worker that fails once costs time": [(fails("x"), AGAIN)],
    "a poison shard is quarantined": [(fails("x", "a"), AGAIN), (fails("x", "b"), OUT)],
    "also on one node": [(fails("x"), AGAIN), (fails("x"), OUT)],
    "a success in between does not clear the shard": [(fails("x"), AGAIN), (scores(), "-"), (fails("x"), OUT)],
    "attempts count by shard": [(fails("x"), AGAIN), (fails("y", "b"), AGAIN), (fails("x"), OUT)],
    "a shard whose workers are evicted is given up, and not marked": [(evicted("x"), AGAIN), (evicted("x"), GIVEN_UP)],
    # Two shards open in the worker that failed.
    "with two shards open neither is blamed": [
        (fails("x", beside="y"), AGAIN),
        (suspects("x", "y"), "yes"),
        (may("x", "a", "b"), "yes"),
        (may("y", "a", "b"), "yes"),
    ],
    "nor with three": [(fails("x", beside="yz"), AGAIN), (suspects("x", "y", "z"), "yes"), (fails("y"), AGAIN)],
    "and each is judged when it is tried alone": [
        (fails("x", beside="y"), AGAIN),
        (fails("y", "b"), AGAIN),
        (fails("y", "a"), OUT),
        (fails("x", "b"), AGAIN),
    ],
    "two open shards count once for the node": [
        (fails("v", beside="x"), AGAIN),
        (fails("x"), AGAIN),
        (fails("y", beside="z"), "retry replace avoid evict"),
    ],
    "a quiet run suspects nothing": [(scores(), "-"), (suspects(), "yes")],
    "a shard that failed alone is suspected": [(fails("x"), AGAIN), (suspects("x"), "yes")],
    # Where a shard is tried again.
    "not where it failed": [(fails("x", "a"), AGAIN), (may("x", "a", "b"), "no"), (may("x", "b", "a"), "yes")],
    "but there rather than nowhere": [(fails("x", "a"), AGAIN), (may("x", "a"), "yes")],
    "others may go there": [(fails("x", "a"), AGAIN), (may("y", "a", "b"), "yes")],
    # Lost nodes.
    "a lost node is nobody's fault": [(goes("x"), AGAIN)] * (NODE_LOSSES - 1) + [(suspects(), "yes")],
    "until a shard has lost too many": [(goes("x"), AGAIN)] * (NODE_LOSSES - 1) + [(goes("x"), GIVEN_UP)],
    "losses count by shard": [(goes("x"), AGAIN)] * (NODE_LOSSES - 1) + [(goes("y"), AGAIN)],
    "a lost node is no attempt": [(fails("x"), AGAIN), (goes("x", "b"), AGAIN), (fails("x"), OUT)],
    "a shard may go back to a node that was lost": [(goes("x"), AGAIN), (may("x", "a", "b"), "yes")],
    # Nodes that eat shards.
    "a node that fails three shards in a row is avoided": [
        *[(fails(part), AGAIN) for part in "xy"],
        (fails("z"), "retry replace avoid evict"),
    ],
    "its later failures are not reported again": [
        *[(fails(part), AGAIN) for part in "xy"],
        (fails("z"), "retry replace avoid evict"),
        (fails("u"), "retry replace evict"),
    ],
    "one shard that fails three times is not three": [
        (fails("x"), AGAIN),
        *[(fails("x"), OUT)] * 2,
    ],
    "a success on the node begins anew": [
        *[(fails(part), AGAIN) for part in "xy"],
        (scores("a"), "-"),
        *[(fails(part), AGAIN) for part in "uv"],
    ],
    "a success elsewhere does not": [
        *[(fails(part), AGAIN) for part in "xy"],
        (scores("b"), "-"),
        (fails("z"), "retry replace avoid evict"),
    ],
    "the only node is used in spite of all": [(fails(part, nodes=ONE), AGAIN) for part in "tuvxyz"],
    "the last node that is not avoided, too": [
        (cannot("b", ready=True), "replace avoid"),
        *[(fails(part), AGAIN) for part in "xyz"],
    ],
    "failures on two nodes do not add up": [
        (fails(part, node), AGAIN) for part, node in zip("uvxy", "abab", strict=True)
    ],
    # Workers that fail while they load.
    "a load failure may be the last": [(no_load(), "replace"), (loads(), "-"), *[(no_load(), "replace")] * 2],
    "too many in a row avoid the node": [*[(no_load(), "replace")] * (LOAD_FAILURES - 1), (no_load(), "replace avoid")],
    "what was started there before is replaced elsewhere": [
        *[(no_load(), "replace")] * (LOAD_FAILURES - 1),
        (no_load(), "replace avoid"),
        (no_load(), "replace"),
    ],
    "on the only node they end the run": [
        *[(no_load(nodes=ONE), "replace")] * (LOAD_FAILURES - 1),
        (no_load(nodes=ONE), "end"),
    ],
    "unless a worker is ready there": [
        *[(no_load(nodes=ONE, ready=True), "replace")] * (LOAD_FAILURES - 1),
        (no_load(nodes=ONE, ready=True), "avoid"),
    ],
    "workers that are never placed end the run": [
        *[(no_load(""), "replace")] * (LOAD_FAILURES - 1),
        (no_load(""), "end"),
    ],
    "or cost a worker, where others are ready": [
        *[(no_load("", ready=True), "replace")] * (LOAD_FAILURES - 1),
        (no_load("", ready=True), "avoid"),
    ],
    "load failures on two nodes do not add up": [(no_load(node), "replace") for node in "abab"],
    "a node that cannot load is avoided at once": [(cannot("a"), "replace avoid")],
    "once, if two workers find out": [(cannot("a"), "replace avoid"), (cannot("a"), "replace")],
    "no node that can load ends the run": [(cannot("a"), "replace avoid"), (cannot("b"), "end")],
    "of three, two may be avoided": [
        (cannot("a", THREE), "replace avoid"),
        (cannot("b", THREE), "replace avoid"),
        (cannot("c", THREE), "end"),
    ],
    "a ready worker goes on alone": [(cannot("a"), "replace avoid"), (cannot("b", ready=True), "avoid")],
    "a new node gives hope": [(cannot("a", ONE | {"b"}), "replace avoid"), (cannot("b", THREE), "replace avoid")],
}


@pytest.mark.parametrize("sequence", SEQUENCES.values(), ids=SEQUENCES)
def test_a_sequence_of_facts_leads_to_these_decisions(sequence: list[tuple[Fact, str]]) -> None:
    ledger = FaultLedger(max_attempts=2)
    for number, (fact, decision) in enumerate(sequence):
        assert fact(ledger) == decision, f"fact {number}"


def test_a_quarantine_says_why_and_how_often() -> None:
    ledger = FaultLedger(max_attempts=3)
    for _ in range(2):
        ledger.worker_failed("x", "a", "killed its worker: signal 9", TWO)
    fate, _ = ledger.worker_failed("x", "b", "killed its worker: signal 11", TWO)
    assert fate == ("quarantine", "killed its worker: signal 11 (3 times)", 3)


def test_one_attempt_may_be_all_there_is() -> None:
    fate, _ = FaultLedger(max_attempts=1).worker_failed("x", "a", "killed", TWO)
    assert fate == ("quarantine", "killed (1 times)", 1)


def test_a_shard_that_loses_node_after_node_says_so() -> None:
    ledger = FaultLedger(max_attempts=1)
    fates = [ledger.node_lost("x", "a", "gone", TWO)[0] for _ in range(NODE_LOSSES)]
    assert fates[-1].reason == f"lost {NODE_LOSSES} times with the node of its worker: gone"


def test_a_node_is_avoided_with_its_cause() -> None:
    ledger = FaultLedger(max_attempts=9)
    for part in "xyz"[:NODE_FAILURES]:
        _, place = ledger.worker_failed(part, "a", f"over {part}", TWO)
    assert str(place.avoid) == f"{NODE_FAILURES} shards in a row lost their worker there: over z"
    assert ledger.avoided == {"a": str(place.avoid)}
    assert ledger.cannot_load("b", CAUSE, TWO, ready=False).end is CAUSE
    assert not ledger.elsewhere("b", TWO)
    assert ledger.elsewhere("b", THREE)


def test_load_failures_end_a_run_with_the_last_reason() -> None:
    ledger = FaultLedger(max_attempts=1)
    for number in range(LOAD_FAILURES):
        decision = ledger.load_failed("a", f"reason {number}", ONE, ready=False)
    assert str(decision.end) == f"{LOAD_FAILURES} workers in a row failed to load: reason {LOAD_FAILURES - 1}"
