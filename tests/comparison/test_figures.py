"""Figures of two detectors on the same images against their definitions, and what their intervals cover."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from gradosr.audit.proportions import wilson
from gradosr.comparison.figures import Labelled, auroc_interval, correlation, figures, placements


def drawn(seed: int, unknown: int = 40, known: int = 60, shift: float = 1.0, gain: float = 0.0) -> Labelled:
    """Two detectors that see much the same; the second sees `gain` more of the difference."""
    rng = np.random.default_rng(seed)
    truth = np.arange(unknown + known) < unknown
    shared = rng.normal(size=len(truth))
    scores = [
        (shared + 0.7 * rng.normal(size=len(truth)) + (shift + more) * truth).astype(np.float32) for more in (0, gain)
    ]
    called = [one > 1.5 for one in scores]
    return Labelled(truth, (scores[0], scores[1]), (called[0], called[1]))


def test_areas_and_the_variance_of_their_difference_are_those_of_the_definition() -> None:
    images = drawn(0, 17, 23, gain=0.4)
    rounded = tuple(np.round(one, 1) for one in images.scores)  # with ties
    images = Labelled(images.unknown, (rounded[0], rounded[1]), images.called)
    found = figures(images)["auroc"]
    psi = []  # DeLong et al. (1988): 1, 1/2 or 0 for each pair of an unknown and a known image
    for name, scores in zip(("before", "after"), images.scores, strict=True):
        high, low = scores[images.unknown][:, None], scores[~images.unknown][None, :]
        psi.append((high > low) + 0.5 * (high == low))
        assert found[name]["estimate"] == pytest.approx(roc_auc_score(images.unknown, scores))
        assert placements(scores, images.unknown)[0] == pytest.approx(psi[-1].mean(1))
        assert placements(scores, images.unknown)[1] == pytest.approx(psi[-1].mean(0))
    change = psi[1] - psi[0]
    error = np.sqrt(change.mean(1).var(ddof=1) / 17 + change.mean(0).var(ddof=1) / 23)
    difference = found["difference"]
    assert difference["estimate"] == pytest.approx(change.mean())
    assert (difference["high"] - difference["low"]) / 2 == pytest.approx(1.959964 * error, rel=1e-5)


def test_intervals_of_differences_cover_the_truth() -> None:
    covered = {"auroc": 0, "found": 0, "false_alarms": 0}
    truth = {
        name: one["difference"]["estimate"] for name, one in _figures(drawn(1, 100_000, 100_000, gain=0.5)).items()
    }
    for seed in range(300):
        found = _figures(drawn(1000 + seed, gain=0.5))
        for name in covered:
            covered[name] += found[name]["difference"]["low"] <= truth[name] <= found[name]["difference"]["high"]
    assert all(275 <= number <= 297 for number in covered.values()), covered


def _figures(images: Labelled) -> dict:
    return {name: one for name, one in figures(images).items() if isinstance(one, dict)}


def test_an_interval_is_narrower_for_what_is_known_to_be_the_same_images() -> None:
    images = drawn(3, gain=0.2)
    paired = figures(images)["auroc"]["difference"]
    order = np.random.default_rng(4).permutation(40)
    apart = images.scores[1].copy()
    apart[:40] = apart[:40][order]
    loose = figures(Labelled(images.unknown, (images.scores[0], apart), images.called))["auroc"]["difference"]
    assert loose["estimate"] == pytest.approx(paired["estimate"])
    assert paired["high"] - paired["low"] < 0.9 * (loose["high"] - loose["low"])


def test_the_difference_of_paired_shares_is_the_formula_written_out() -> None:
    before = np.repeat([True, False, True, False], [20, 12, 2, 16])
    after = np.repeat([True, True, False, False], [20, 12, 2, 16])
    found = figures(Labelled(np.ones(50, bool), (np.zeros(50), np.zeros(50)), (before, after)))
    (low_1, high_1), (low_2, high_2) = wilson(32, 50), wilson(22, 50)
    phi = (20 * 16 - 12 * 2 - 25) / np.sqrt(32 * 18 * 22 * 28)
    down, down_2, up, up_2 = 0.64 - low_1, high_2 - 0.44, high_1 - 0.64, 0.44 - low_2
    low = 0.2 - np.sqrt(down**2 - 2 * phi * down * down_2 + down_2**2)
    high = 0.2 + np.sqrt(up**2 - 2 * phi * up * up_2 + up_2**2)
    assert found["found"]["difference"] == pytest.approx({"estimate": 0.2, "low": low, "high": high})
    assert (round(low, 3), round(high, 3)) == (0.056, 0.329)
    assert found["auroc"] is found["false_alarms"] is None
    assert correlation(before, ~before) < -0.9 < correlation(before, before) < 1


def test_an_area_of_one_is_not_beyond_doubt_and_the_same_detector_differs_by_nothing() -> None:
    low, high = auroc_interval(1.0, 5, 5)
    assert (0.5 < low < 0.9, high) == (True, 1.0)
    assert auroc_interval(0.0, 5, 5) == pytest.approx((0.0, 1 - low))
    images = drawn(5)
    same = figures(Labelled(images.unknown, (images.scores[0],) * 2, (images.called[0],) * 2))
    assert same["auroc"]["difference"] == {"estimate": 0.0, "low": 0.0, "high": 0.0, "p_value": 1.0}
