"""Shares by labels of drawn images, where the truth is known; and images that the bundle has learned from."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gradosr.jobs.cli import run
from made_runs import CLASSES, calibration, rows, write_run

from gradosr.audit import audit, words
from gradosr.audit.by_labels import ENOUGH, by_labels
from gradosr.audit.proportions import Stratum, more_to_halve, stratified, wilson
from gradosr.audit.rows import id_of
from gradosr.audit.summary import summary
from gradosr.config import AuditSettings
from gradosr.lab.evaluation.evaluation import evaluate_rows
from gradosr.lab.evaluation.rows import read_rows
from gradosr.labels import verdicts
from gradosr.labels.folder import rows_of, write_labels
from gradosr.store import Store

SIZES, DRAWN, SHARES = (100, 400, 1500, 3000), (25, 45, 65, 65), (0.9, 0.6, 0.2, 0.02)
"""Images of an archive by stratum, how many of them are drawn, and the share of unknown ones."""


def strata_of(seed: int) -> list[Stratum]:
    draws = np.random.default_rng(seed)
    return [
        Stratum(size, drawn, int(draws.hypergeometric(round(size * share), size - round(size * share), drawn)))
        for size, drawn, share in zip(SIZES, DRAWN, SHARES, strict=True)
    ]


def test_the_interval_covers_the_truth_and_the_strata_make_it_narrower() -> None:
    truth = sum(round(size * share) for size, share in zip(SIZES, SHARES, strict=True)) / sum(SIZES)
    found = [stratified(strata_of(seed)) for seed in range(200)]
    assert sum(low <= truth <= high for _, low, high in found) >= 184  # of 200, at 95 %
    assert abs(np.mean([estimate for estimate, *_ in found]) - truth) < 0.01
    low, high = wilson(truth * 200, 200)
    assert np.mean([one[2] - one[1] for one in found]) < high - low


def test_an_interval_is_one_where_counts_are_small_and_a_point_where_all_is_known() -> None:
    estimate, low, high = stratified([Stratum(1000, 20, 0)])
    assert (estimate, low) == (0, 0)
    assert 0.1 < high < 0.25
    assert stratified([Stratum(40, 40, 10)]) == (0.25, 0.25, 0.25)
    assert more_to_halve([Stratum(40, 40, 10)]) == 0


def test_as_many_more_labels_as_are_said_halve_the_interval() -> None:
    strata = strata_of(3)
    more, drawn = more_to_halve(strata), sum(DRAWN)
    factor = 1 + more / drawn
    grown = [Stratum(one.images, one.drawn * factor, one.found * factor) for one in strata]
    assert all(one.drawn < one.images for one in grown[1:])
    (_, low, high), (_, less_low, less_high) = stratified(strata), stratified(grown)
    assert (less_high - less_low) / (high - low) == pytest.approx(0.5, abs=0.02)


def drawn_run(folder: Path, **about: object) -> tuple[str, list[dict[str, object]]]:
    """A run of 600 images, a third of them unknown, and the opinions on a tenth of them."""
    known = calibration()
    scores = np.concatenate([np.random.default_rng(5).normal(size=400), np.full(200, 9.0)])
    made = rows("a.tar", scores, known)
    uri = write_run(folder / "run", {"part-a": made}, known)
    document = json.loads((folder / "run/run.json").read_text())
    (folder / "run/run.json").write_text(json.dumps({**document, **about}))
    when = np.datetime64("2026-11-28T00:00:00", "us").item()
    said = [
        {
            "key": row["key"],
            "shard": "a.tar",
            "label": "unknown" if row["row"] >= 400 else "cat",
            "who": "ann",
            "when": when,
            "source": "csv",
            "drawn": 0.1,
        }
        for row in made[::10]
    ]
    return uri, said


def test_the_command_shows_shares_by_labels_beside_those_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri, said = drawn_run(tmp_path)
    write_labels(Store(), uri, rows_of(said))
    assert run(["audit", uri, "--out", str(tmp_path / "out")]) == 0
    facts = json.loads((tmp_path / "out/audit.json").read_text())["labels"]
    assert (facts["labelled"], facts["drawn"]) == (60, 60)
    share, precision = facts["unknown_share"], facts["precision"]
    assert share["low"] < 1 / 3 < share["high"]
    assert share["estimate"] == pytest.approx(1 / 3)
    assert precision["low"] < 200 / 220 < precision["high"]
    assert share["labels_to_halve"] > 20
    page = (tmp_path / "out/index.html").read_text()
    assert "labels of drawn images" in page
    assert "more would halve the interval" in page
    assert "would halve the interval" in capsys.readouterr().out


def test_too_few_drawn_labels_are_told_and_no_labels_are_not(tmp_path: Path) -> None:
    uri, said = drawn_run(tmp_path)
    few = verdicts(rows_of([*said[: ENOUGH - 1], *({**row, "drawn": None} for row in said[ENOUGH - 1 :])]), CLASSES)
    facts = audit(Store(), uri, AuditSettings(), verdicts=few)
    assert facts["labels"]["unknown_share"] is facts["labels"]["precision"] is None
    assert words.by_labels(facts) == [
        "60\u00a0images labelled, 19 of them drawn at random: from 20 on, they tell the share of "
        "unknown images without any assumption."
    ]
    assert audit(Store(), uri, AuditSettings(), verdicts=few.slice(0, 0))["labels"] is None


def test_labels_of_images_that_are_not_in_the_table_do_not_count() -> None:
    said = pa.Table.from_pylist([{"key": "gone", "unknown": True, "drawn": 0.5}])
    assert by_labels(said, {})["labelled"] == 0


def test_images_that_the_bundle_has_learned_from_are_left_out(tmp_path: Path) -> None:
    plain, said = drawn_run(tmp_path / "plain")
    taught = [id_of(str(row["key"])) for row in said[:50]]
    uri, _ = drawn_run(tmp_path / "learned", learned=taught)
    labels = verdicts(rows_of(said), CLASSES)
    before = audit(Store(), plain, AuditSettings(), verdicts=labels)
    facts = audit(Store(), uri, AuditSettings(), out=tmp_path / "out", verdicts=labels)
    assert (before["images"], facts["images"]) == (600, 550)
    assert before["unknown"] - facts["unknown"] >= 10
    assert facts["labels"]["labelled"] == 10
    assert facts["notes"][0].startswith("50 images that the bundle has learned from are left out")
    flagged = pq.read_table(tmp_path / "out/flagged.parquet")["id"].to_pylist()
    assert len(flagged) == facts["flags"]["count"]
    assert not set(flagged) & set(taught)
    assert "550 scored" in summary(facts)


def test_evaluate_leaves_them_out_too(tmp_path: Path) -> None:
    known = calibration()
    made = [
        {**row, "label": "plane" if row["row"] >= 20 else "cat", "max_logit": 1.0, "energy": 0.0}
        for row in rows("a.tar", np.arange(40.0), known)
    ]
    uri = write_run(tmp_path / "run", {"part-a": made}, known)
    document = json.loads((tmp_path / "run/run.json").read_text())
    learned = [id_of(row["key"]) for row in made[15:25]]
    (tmp_path / "run/run.json").write_text(json.dumps({**document, "learned": learned}))
    found = evaluate_rows(read_rows(Store(), uri))
    assert (found.known, found.unknown, found.left_out) == (15, 15, 10)
