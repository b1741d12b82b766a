"""Metrics against their definitions, written as loops."""

import itertools

import numpy as np
import pytest

from gradosr.lab.evaluation.metrics import auroc, fpr_at_95_tpr, macro_f1, oscr, risk_coverage

SEEDS = range(30)


def draw(seed, n=24):
    """Scores with many ties, both kinds of image, some misclassified."""
    rng = np.random.default_rng(seed)
    unknown = rng.random(n) < rng.uniform(0.2, 0.8)
    unknown[:2] = [True, False]
    scores = rng.integers(0, 8, n) / 4 + 0.5 * unknown
    return scores, unknown, rng.random(n) < 0.7


def slow_auroc(scores, unknown):
    """Chance that an unknown image scores above a known one; a tie is half a win."""
    pairs = list(itertools.product(scores[unknown], scores[~unknown]))
    return sum((u > k) + 0.5 * (u == k) for u, k in pairs) / len(pairs)


def slow_fpr(scores, unknown):
    """Lowest share of unknown accepted by a threshold that accepts 95 % of the known."""
    known = scores[~unknown]
    return min(np.mean(scores[unknown] <= limit) for limit in scores if 20 * np.sum(known <= limit) >= 19 * len(known))


def slow_oscr(scores, unknown, correct):
    """Trapezoids under (share of unknown accepted, share of known accepted and right), over all thresholds."""
    points = [
        (np.mean(scores[unknown] <= limit), np.mean((scores <= limit)[~unknown] & correct[~unknown]))
        for limit in [-np.inf, *sorted(set(scores))]
    ]
    return sum((x2 - x1) * (y1 + y2) / 2 for (x1, y1), (x2, y2) in itertools.pairwise(points))


def slow_macro_f1(labels, predicted):
    scores = []
    for name in set(labels) | set(predicted):
        pairs = list(zip(labels, predicted, strict=True))
        hits = sum(a == name == b for a, b in pairs)
        wrong = sum((a == name) != (b == name) for a, b in pairs)
        scores.append(2 * hits / (2 * hits + wrong))
    return sum(scores) / len(scores)


@pytest.mark.parametrize("seed", SEEDS)
def test_metrics_are_their_definitions_with_ties(seed):
    scores, unknown, correct = draw(seed)
    assert auroc(scores, unknown) == pytest.approx(slow_auroc(scores, unknown))
    assert fpr_at_95_tpr(scores, unknown) == pytest.approx(slow_fpr(scores, unknown))
    assert oscr(scores, unknown, correct) == pytest.approx(slow_oscr(scores, unknown, correct))
    assert auroc(scores.astype(np.float32), unknown) == pytest.approx(slow_auroc(scores, unknown))


@pytest.mark.parametrize("known", [19, 20, 21, 39, 40, 100])
def test_ninety_five_percent_is_not_missed_by_rounding(known):
    rng = np.random.default_rng(known)
    unknown = np.arange(known + 10) >= known
    scores = rng.permutation(known + 10).astype(np.float32)
    assert fpr_at_95_tpr(scores, unknown) == pytest.approx(slow_fpr(scores, unknown))


def test_perfect_scores_and_reversed_ones():
    unknown = np.array([False] * 30 + [True] * 10)
    correct = np.array([True] * 24 + [False] * 6 + [True] * 10)  # what an unknown image is called does not count
    perfect = np.where(unknown, 2.0, 1.0)
    assert auroc(perfect, unknown) == 1
    assert fpr_at_95_tpr(perfect, unknown) == 0
    assert oscr(perfect, unknown, correct) == pytest.approx(0.8)  # closed-set accuracy
    assert auroc(-perfect, unknown) == 0
    assert fpr_at_95_tpr(-perfect, unknown) == 1
    assert oscr(-perfect, unknown, correct) == 0


def test_scores_that_say_nothing_are_chance():
    unknown = np.array([False] * 30 + [True] * 10)
    assert auroc(np.zeros(40), unknown) == 0.5
    assert fpr_at_95_tpr(np.zeros(40), unknown) == 1
    assert oscr(np.zeros(40), unknown, np.ones(40, bool)) == 0.5


def test_the_order_of_the_images_does_not_matter():
    scores, unknown, correct = draw(3)
    order = np.random.default_rng(1).permutation(len(scores))
    assert oscr(scores[order], unknown[order], correct[order]) == pytest.approx(oscr(scores, unknown, correct))
    assert fpr_at_95_tpr(scores[order], unknown[order]) == fpr_at_95_tpr(scores, unknown)


@pytest.mark.parametrize("seed", SEEDS)
def test_macro_f1_is_its_definition(seed):
    rng = np.random.default_rng(seed)
    labels, predicted = rng.choice(["cat", "dog", "unknown"], (2, 20)).tolist()
    assert macro_f1(labels, predicted) == pytest.approx(slow_macro_f1(labels, predicted))
    assert macro_f1(labels, labels) == 1


def test_macro_f1_counts_a_class_that_is_never_found_as_nothing():
    assert macro_f1(["cat", "dog", "unknown"], ["cat", "unknown", "unknown"]) == pytest.approx((1 + 0 + 2 / 3) / 3)
    assert macro_f1(["cat", "dog"], ["dog", "cat"]) == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_risk_coverage_is_its_definition_with_ties(seed):
    scores, unknown, correct = draw(seed)
    wrong = unknown | ~correct
    coverage, risk = risk_coverage(scores, wrong)
    limits = sorted(set(scores))
    assert coverage == pytest.approx([np.mean(scores <= limit) for limit in limits])
    assert risk == pytest.approx([np.mean(wrong[scores <= limit]) for limit in limits])
