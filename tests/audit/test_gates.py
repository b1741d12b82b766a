"""The gates of a night: when each trips, and that the table alone decides which there are."""

from typing import Any

import pytest

from gradosr.audit.gates import GATES, NightFacts, judge
from gradosr.audit.nights import Counts, Night, Verdict
from gradosr.config import Gates

QUIET = Counts(1000, 1000, 50)


def night(counts: Counts = QUIET) -> Night:
    return Night("2026-11-21", "2026-11-21T02:30:00+01:00", counts, 10, 1, (), ())


def tripped(gates: Gates, counts: Counts = QUIET, before: tuple[Night, ...] = (night(),), **facts: Any) -> list[str]:
    known: dict[str, Any] = {"missing": 0, "archive_before": 10, "new_classes": [], **facts}
    return [verdict.gate for verdict in judge(gates, NightFacts(counts, before, **known)) if verdict.tripped]


def test_a_rate_trips_when_all_of_its_interval_lies_above() -> None:
    assert tripped(Gates(unknown_rate=0.03)) == ["unknown_rate"]
    assert tripped(Gates(unknown_rate=0.045)) == []  # .05 of 1,000 may be .038
    assert tripped(Gates(unknown_rate=0.1), Counts(3, 3, 1)) == []  # a third, of three
    assert tripped(Gates(unknown_rate=0.0), Counts(5, 0, 0)) == []


def test_an_increase_is_measured_against_the_nights_before() -> None:
    gates = Gates(rate_increase=0.02)
    assert tripped(gates, Counts(1000, 1000, 120)) == ["rate_increase"]
    assert tripped(gates, Counts(1000, 1000, 75)) == []  # .025 more, give or take .021
    assert tripped(gates, Counts(1000, 1000, 500), ()) == []


def test_counts_trip_beyond_their_allowance() -> None:
    assert tripped(Gates(bad_images=0), Counts(10, 9, 0)) == ["bad_images"]
    assert tripped(Gates(bad_images=0.1), Counts(10, 9, 0)) == []
    assert tripped(Gates(shards_missing=0), missing=1) == ["shards_missing"]
    assert tripped(Gates(shards_missing=0.1), missing=1) == []
    assert tripped(Gates(new_candidate_class=20), new_classes=[3, 20]) == ["new_candidate_class"]
    assert tripped(Gates(new_candidate_class=20), new_classes=[3, 19]) == []
    assert tripped(Gates(new_candidate_class=20), before=(), new_classes=[20]) == []


def test_a_gate_that_is_not_named_is_off_and_every_other_says_why() -> None:
    assert judge(Gates(), NightFacts(QUIET, (), 5, 5, [5])) == ()
    named = Gates(unknown_rate=0.5, rate_increase=0.5, shards_missing=3)
    for verdict in judge(named, NightFacts(QUIET, (night(),), 0, 10, [])):
        assert verdict.why
        assert verdict.found is not None


def test_a_gate_is_added_by_its_line_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    def few_images(gates: Gates, night: NightFacts) -> Verdict | None:
        bound = 2 if gates.bad_images is None else 0
        return Verdict("few_images", bound, night.counts.images, night.counts.images < bound, why="a toy")

    monkeypatch.setitem(GATES, "few_images", few_images)
    assert tripped(Gates(), Counts(1, 1, 0)) == ["few_images"]
    assert tripped(Gates(), Counts(2, 2, 0)) == []
    assert tripped(Gates(bad_images=0), Counts(2, 1, 0)) == ["bad_images"]  # the others are judged as before
    assert [one.gate for one in judge(Gates(bad_images=0), NightFacts(QUIET))] == ["bad_images", "few_images"]


def test_every_gate_has_its_bound_in_the_config() -> None:
    assert list(GATES) == list(Gates.model_fields)
    bounds: dict[str, Any] = {
        "unknown_rate": 0.9,
        "rate_increase": 0.9,
        "new_candidate_class": 99,
        "bad_images": 9,
        "shards_missing": 9,
    }
    for name, bound in bounds.items():
        verdicts = judge(Gates(**{name: bound}), NightFacts(QUIET, (night(),)))
        assert [(one.gate, one.bound) for one in verdicts] == [(name, bound)]
