"""The correction by labels, on data whose answer is known."""

import numpy as np
import pytest

from gradosr.fit.correction import (
    LEAST_SLOPE,
    PENALTIES,
    Examples,
    choose_penalty,
    cross_validated,
    fit_correction,
)
from gradosr.lab.evaluation.metrics import auroc

D = 20


def drawn(known: int, unknown: int, seed: int, shift: float = 1.5) -> Examples:
    """Images whose older score tells little; unknown ones lie off in one of the D directions."""
    draws = np.random.default_rng(seed)
    unknown_B = np.arange(known + unknown) >= known
    x_BD = draws.normal(size=(len(unknown_B), D))
    x_BD[unknown_B, 3] += shift
    z_B = draws.normal(size=len(unknown_B)) + 0.5 * unknown_B
    return Examples(z_B, x_BD, unknown_B, np.ones(len(unknown_B), bool))


def with_known(labelled: Examples, seed: int = 9) -> Examples:
    """Labelled images after 300 known ones held out."""
    held_out = drawn(300, 0, seed)
    columns = ((getattr(held_out, name), getattr(labelled, name)) for name in ("z_B", "x_BD", "unknown_B"))
    return Examples(*map(np.concatenate, columns), np.arange(300 + len(labelled.z_B)) >= 300)


@pytest.mark.parametrize("labels", [20, 80])
def test_labels_that_agree_correct_the_score(labels: int) -> None:
    gains = []
    for seed in range(5):
        examples = with_known(drawn(labels // 2, labels // 2, seed))
        correction = fit_correction(examples, choose_penalty(cross_validated(examples)))
        fresh = drawn(1000, 1000, 100 + seed)
        corrected = fresh.z_B + fresh.x_BD @ correction.weights_D
        gains.append(auroc(corrected, fresh.unknown_B) - auroc(fresh.z_B, fresh.unknown_B))
    assert np.mean(gains) > 0.03
    assert min(gains) > -0.01


def test_labels_that_mean_nothing_do_little_harm() -> None:
    losses = []
    for seed in range(10):
        labelled = drawn(30, 0, seed)
        unknown_B = np.random.default_rng(seed).permutation(30) < 12
        examples = with_known(Examples(labelled.z_B, labelled.x_BD, unknown_B, labelled.labelled_B))
        correction = fit_correction(examples, choose_penalty(cross_validated(examples)))
        fresh = drawn(1000, 1000, 100 + seed, shift=0.0)
        corrected = fresh.z_B + fresh.x_BD @ correction.weights_D
        losses.append(auroc(fresh.z_B, fresh.unknown_B) - auroc(corrected, fresh.unknown_B))
    assert np.median(losses) < 0.02
    assert max(losses) < 0.15  # the older score alone has .64


def test_an_infinite_penalty_leaves_the_older_score() -> None:
    correction = fit_correction(with_known(drawn(10, 10, 0)), np.inf)
    assert not correction.weights_D.any()
    assert len(correction.weights_D) == D


def test_weights_shrink_as_the_penalty_grows() -> None:
    examples = with_known(drawn(40, 40, 0))
    lengths = [np.linalg.norm(fit_correction(examples, penalty).weights_D) for penalty in PENALTIES]
    assert lengths == sorted(lengths, reverse=True)


def test_an_older_score_that_points_the_wrong_way_is_not_turned_round() -> None:
    examples = with_known(drawn(40, 40, 0, shift=0.0))
    turned = Examples(-3 * examples.z_B, examples.x_BD, examples.unknown_B, examples.labelled_B)
    assert fit_correction(turned, PENALTIES[0]).slope == pytest.approx(LEAST_SLOPE, abs=0.05)


def test_known_images_weigh_as_much_as_unknown_ones_however_many_there_are() -> None:
    once = with_known(drawn(0, 40, 0))
    rows = np.concatenate([np.flatnonzero(~once.unknown_B), np.arange(len(once.z_B))])
    twice = Examples(once.z_B[rows], once.x_BD[rows], once.unknown_B[rows], once.labelled_B[rows])
    one, other = (fit_correction(examples, 2.5).weights_D for examples in (once, twice))
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def test_each_labelled_image_is_judged_by_a_fit_without_its_fold() -> None:
    examples = with_known(drawn(10, 10, 0))
    losses = cross_validated(examples)
    assert set(losses) == set(PENALTIES)
    assert {len(loss_L) for loss_L in losses.values()} == {20}
    seen = fit_correction(examples, PENALTIES[0]).losses(examples)[examples.labelled_B]
    assert losses[PENALTIES[0]].mean() > seen.mean()


def test_the_strongest_penalty_that_is_not_clearly_worse_is_chosen() -> None:
    best = np.array([0.5, 0.6, 0.4, 0.5])
    assert choose_penalty({1.0: best, 2.0: best + np.array([0.1, -0.1, 0.1, -0.1]), 3.0: best + 0.2}) == 2.0
    assert choose_penalty({1.0: best, np.inf: best}) == np.inf
