"""p-values of a calibration per class: exact counts, and the figures and lists that an audit makes of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from made_runs import CLASSES, RATE, rows, write_run
from test_audit import drawn, facts

from gradosr.audit import words
from gradosr.audit.false_alarms import FalseAlarms
from gradosr.audit.flags import certified
from gradosr.audit.histograms import p_value_histogram
from gradosr.audit.p_values import PValueCounts, PValues
from gradosr.audit.prevalence import share_of_unknown
from gradosr.bundle.calibration import Calibration
from gradosr.bundle.manifest import CalibrationSummary

SCALE = np.array([1.0, 3.0, 9.0])
"""Deviation of the scores of known images by predicted class."""


def known_scores(rng: np.random.Generator, sizes: tuple[int, ...], mean: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Scores of images around `mean` deviations of their class, and their predicted classes."""
    index = rng.permutation(np.repeat(np.arange(3), sizes))
    return SCALE[index] * rng.normal(mean, 1, len(index)), index


def calibrated(seed: int, sizes: tuple[int, ...]) -> Calibration:
    return Calibration.of(*(known := known_scores(np.random.default_rng(seed), sizes))[:1], RATE, known[1], CLASSES)


def counted(known: Calibration, p_values: np.ndarray, index: np.ndarray) -> PValueCounts:
    by_class = None if known.kind == "pooled" else {CLASSES[k]: len(own) for k, own in known.by_class.items()}
    counts = PValueCounts(CalibrationSummary(images=len(known.scores), edges=(), counts=(), by_class=by_class), CLASSES)
    for piece in np.array_split(np.arange(len(p_values)), 3):
        counts.add(p_values[piece], index[piece])
    return counts


def archive(seed: int, sizes: tuple[int, ...], known: int, unknown: int) -> tuple[PValues, np.ndarray]:
    """The p-values of an archive: counted, and in the order of its images, known ones first."""
    rng, shares = np.random.default_rng(1000 + seed), np.array([5, 3, 2])
    of_known, of_unknown = (tuple((n * shares // 10).tolist()) for n in (known, unknown))
    pieces = known_scores(rng, of_known), known_scores(rng, of_unknown, 4.0)
    scores, index = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    calibration = calibrated(seed, sizes)
    p_values = calibration.p_values(scores, index)
    return counted(calibration, p_values, index).settled(), p_values


def test_images_are_counted_by_their_p_values_whatever_their_class() -> None:
    found, p_values = archive(0, (400, 77, 30), 1000, 300)
    values, images = np.unique(p_values, return_counts=True)
    assert found.images == 1300
    there = found.images_V > 0
    np.testing.assert_allclose(found.values_V[there], values, rtol=1e-6)
    assert found.images_V[there].tolist() == images.tolist()
    assert (np.diff(found.values_V) > 0).all()
    assert found.values_V[-1] == found.known_V[-1] == 1


def test_known_images_are_expected_at_the_p_values_that_their_class_allows() -> None:
    found, _ = archive(0, (400, 77, 30), 1000, 0)
    for p_value in (0.01, 0.05, 0.3):
        expected = sum(
            share * np.floor(p_value * (n + 1)) / (n + 1)
            for share, n in zip((0.5, 0.3, 0.2), (400, 77, 30), strict=True)
        )
        assert found.known_V[found.up_to(p_value) - 1] == pytest.approx(expected)
    assert found.effective == pytest.approx(1 / (0.25 / 402 + 0.09 / 79 + 0.04 / 32) - 2, abs=1e-5)


def test_a_pooled_calibration_is_the_case_of_one_class() -> None:
    counts, *_ = drawn(0, 999, 900, 100, 3.0)
    found = PValues.pooled(counts)
    np.testing.assert_array_equal(found.values_V, np.arange(1, 1001) / 1000)
    np.testing.assert_array_equal(found.known_V, found.values_V)
    assert found.images_V.tolist() == counts.tolist()
    assert (found.effective, found.highest, found.lowest) == (999, counts[0], 0.001)


def test_p_values_of_another_calibration_are_noticed() -> None:
    known, other = calibrated(0, (400, 77, 30)), calibrated(1, (397, 80, 30))
    scores, index = known_scores(np.random.default_rng(2), (100, 100, 100))
    assert counted(known, known.p_values(scores, index), index).strange == 0
    assert counted(known, other.p_values(scores, index), index).strange > 50
    pooled = Calibration(known.scores)
    assert counted(known, pooled.p_values(scores), index).strange > 50
    assert counted(pooled, pooled.p_values(scores), index).strange == 0


def test_classes_without_a_calibration_of_their_own_have_the_p_values_of_all_images() -> None:
    scores, index = known_scores(np.random.default_rng(3), (500, 300, 3))
    known = Calibration.of(scores, RATE, index, CLASSES)
    assert sorted(known.by_class) == [0, 1]
    p_values = known.p_values(scores, index)
    found = counted(known, p_values, index)
    assert (found.strange, found.settled().images) == (0, 803)


def test_flags_are_those_of_benjamini_and_hochberg_on_sorted_rows() -> None:
    for seed in range(20):
        found, p_values = archive(seed, (300, 80, 40), 400, 80)
        in_order = np.sort(p_values.astype(np.float64))
        passing = np.flatnonzero(in_order <= 0.1 * np.arange(1, len(in_order) + 1) / len(in_order) * (1 + 1e-6))
        expected = 0 if not len(passing) else int((in_order <= in_order[passing[-1]]).sum())
        flags = certified(found, 0.1)
        assert flags.count == expected == (p_values <= np.float32(flags.cut)).sum()


def test_the_share_of_false_flags_keeps_its_level() -> None:
    false = []
    for seed in range(60):
        found, p_values = archive(seed, (750, 450, 300), 4000, 1000)
        flagged = p_values <= certified(found, 0.1).cut
        false.append(flagged[:4000].sum() / max(1, flagged.sum()))
    assert np.mean(false) <= 0.12


def test_what_the_calibration_cannot_certify_is_said_with_the_number_that_could() -> None:
    counts = [np.zeros(401, int), np.zeros(41, int)]
    counts[0][[0, 300]], counts[1][[0, 30]] = (2, 50_000), (1, 50_000)
    flags = certified(PValues.of(counts, 440, per_class=True), 0.1)
    assert flags.count == 0
    assert str(flags.reason).endswith(
        "3 score above all calibration images of their predicted class, and 24,391 would have to"
    )
    counts[0][[0, 300]], counts[1][[0, 30]] = (12_000, 37_801), (12_400, 37_802)  # as many images in all
    assert certified(PValues.of(counts, 440, per_class=True), 0.1).count == 24_400


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5])
def test_the_interval_covers_the_true_share(share: float) -> None:
    unknown = int(5000 * share)
    found = [share_of_unknown(archive(seed, (750, 450, 300), 5000 - unknown, unknown)[0], 0.95) for seed in range(40)]
    assert sum(one.low <= share <= one.high for one in found) >= 35  # of 40, at 95 %
    assert sum(one.lower_bound <= share for one in found) >= 35
    assert np.mean([one.high - one.low for one in found]) <= 0.1


def test_a_share_needs_calibration_images_of_the_classes_in_the_archive() -> None:
    found, _ = archive(0, (19, 19, 2000), 1000, 0)
    reason = share_of_unknown(found, 0.95).reason
    assert reason is not None
    assert "the predicted classes of this archive have too few calibration images each for a share" in reason
    assert "`calibration: pooled`" in reason
    absent = PValues.of([np.full(1000, 3), np.zeros(7000, int)], 7998, per_class=True)  # no image of a class
    assert share_of_unknown(absent, 0.95).low == 0
    few = PValues.of([np.array([0, 1, 1, 1, 2])] * 100, 400, per_class=True)  # p-values of fifths alone
    assert share_of_unknown(few, 0.95).reason is not None


def test_false_alarms_add_up_to_what_known_images_alone_would_have() -> None:
    found, p_values = archive(5, (1000, 600, 400), 20_000, 2000)
    alarms = FalseAlarms.of(found, 20_000 / 22_000, RATE)
    expected = alarms(p_values[p_values <= RATE]).sum()
    assert expected == pytest.approx(20_000 * RATE, rel=0.15)
    assert (np.diff(alarms.shares) >= 0).all()


def test_the_histogram_is_flat_where_all_images_are_known() -> None:
    calibrations = [archive(seed, (400, 77, 30), 5000, 0)[0] for seed in range(40)]
    made = [p_value_histogram(found, np.zeros(20, int)) for found in calibrations]
    assert [sum(one["archive"]) for one in made] == [5000] * 40
    (edges,) = {tuple(one["edges"]) for one in made}
    assert (edges[0], edges[-1], len(edges)) == (0, 1, 101)
    images = np.mean([one["archive"] for one in made], 0)
    assert np.abs(images / 5000 / np.diff(edges) - 1).mean() < 0.15  # 0.4 by the luck of one calibration


def test_a_page_lists_the_images_of_the_lowest_p_values(tmp_path: Path) -> None:
    known = calibrated(0, (500, 300, 200))
    rng = np.random.default_rng(1)
    scores, index = known_scores(rng, (300, 300, 300))
    scores[index == 0] += 5 * (rng.random((index == 0).sum()) < 0.4)  # unknown, yet lower than many of another class
    made = rows("a.tar", scores, known, index=index.tolist())
    uri = write_run(tmp_path / "run", {"a": made}, known)
    found: dict[str, Any] = facts(uri, tmp_path / "out", fdr=0.2)
    expected = sorted(made, key=lambda row: (row["p_value"], -row["unknown_score"], row["key"]))
    assert [row["key"] for row in found["highest"]] == [row["key"] for row in expected[:100]]
    by_score = sorted(made, key=lambda row: -row["unknown_score"])
    assert {row["key"] for row in by_score[:100]} != {row["key"] for row in expected[:100]}
    assert found["flags"]["count"] > 50
    listed = pq.read_table(tmp_path / "out" / found["list"])
    assert len(listed) == found["flags"]["count"]
    assert {row["key"] for row in found["highest"]} <= set(listed["key"].to_pylist())
    assert found["calibration"] == {"images": 1000, "kind": "per_class"}
    assert words.most_unknown(found) == "lowest p-values"
    page = (tmp_path / "out" / "index.html").read_text()
    assert "an image compared with those of its predicted class" in page
    assert "of known images are over it, in each predicted class" in page
