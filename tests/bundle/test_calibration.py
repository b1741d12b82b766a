"""p-values and thresholds against their definitions, one image at a time."""

from fractions import Fraction

import numpy as np
import pytest

from gradosr.bundle.calibration import Calibration
from gradosr.errors import InputError

RATES = [0.01, 0.05, 0.1, 0.2, 0.25, 0.3, 1 / 3, 0.5, 0.75, 0.9, 0.99, 1 / 49, 1 / 98, 1 / 103, 0.07]


def calibration(scores):
    return Calibration(np.sort(np.asarray(scores, dtype=np.float32)))


def by_definition(scores, one):
    """(1 + number of calibration images scoring at least as high) / (n + 1)."""
    return Fraction(1 + sum(bool(score >= one) for score in scores), len(scores) + 1)


def test_p_values_are_their_definition_with_ties_and_infinities():
    rng = np.random.default_rng(0)
    for n in (1, 2, 3, 10, 57):
        known = rng.integers(-4, 5, n).astype(np.float32) / 2
        scores = np.append(rng.integers(-6, 7, 40) / 2, [np.inf, -np.inf, *known]).astype(np.float32)
        found = calibration(known).p_values(scores)
        assert found.dtype == np.float32
        assert found.tolist() == [np.float32(float(by_definition(known, one))) for one in scores]


def test_p_values_lie_between_one_share_and_one():
    found = calibration([1, 2, 3]).p_values(np.array([9.0, 3.0, 2.5, 2.0, 0.0]))
    assert found.tolist() == [0.25, 0.5, 0.5, 0.75, 1.0]


def test_a_score_that_is_no_number_has_no_p_value():
    found = calibration([1, 2, 3]).p_values(np.array([np.nan, 2, np.nan], dtype=np.float32))
    assert np.isnan(found).tolist() == [True, False, True]
    assert calibration([1, 2]).p_values(np.zeros(0, np.float32)).shape == (0,)


def test_scores_of_double_precision_are_compared_as_they_were_calibrated():
    """0.1 is not a float32; an image that ties with a calibration image must tie after saving, too."""
    scores = np.array([0.1, 0.2, 0.3])
    assert Calibration.of(scores, 0.5).p_values(scores).tolist() == [1.0, 0.75, 0.5]


@pytest.mark.parametrize("rate", RATES)
def test_threshold_says_what_the_p_value_says(rate):
    """p <= rate exactly where score > threshold, for every n that allows the rate."""
    rng = np.random.default_rng(int(rate * 1000))
    for n in [*range(1, 130), 199, 500, 1999]:
        known = np.round(rng.normal(size=n), 1 if n % 2 else 6)  # many ties, or hardly any
        try:
            fitted = Calibration.of(known, rate)
        except InputError:
            assert 1 / (n + 1) > rate
            continue
        assert 1 / (n + 1) <= rate * (1 + 1e-6)
        scores = np.concatenate([fitted.scores, np.nextafter(fitted.scores, 9), rng.normal(size=50), [-99, 99]])
        scores = scores.astype(np.float32)
        unknown = fitted.p_values(scores) <= rate
        assert unknown.tolist() == (scores > np.float32(fitted.threshold(rate))).tolist()
        assert unknown[-1], "the highest of all must be unknown, or the rate is not certified"


def test_random_rates_and_sizes_agree_too():
    rng = np.random.default_rng(7)
    for _ in range(300):
        n = int(rng.integers(1, 400))
        rate = float(rng.choice([rng.uniform(1 / (n + 1), 1), rng.integers(1, n + 1) / (n + 1)]))
        fitted = Calibration.of(rng.normal(size=n), rate)
        scores = np.append(fitted.scores, rng.normal(size=20).astype(np.float32))
        assert ((fitted.p_values(scores) <= rate) == (scores > np.float32(fitted.threshold(rate)))).all(), (n, rate)


@pytest.mark.parametrize(
    ("scores", "rate", "message"),
    [
        (
            np.arange(18.0), 0.05,
            "18 calibration images: the smallest p-value they allow is 0.0526; "
            "a false-alarm rate of 0.05 needs at least 19. Hold out more images",
        ),
        (
            np.array([]), 0.5,
            "0 calibration images: the smallest p-value they allow is 1; "
            "a false-alarm rate of 0.5 needs at least 1. Hold out more images",
        ),
        (
            np.array([*range(97), np.nan, np.inf, 99]), 0.01,
            "98 calibration images: the smallest p-value they allow is 0.0101; "
            "a false-alarm rate of 0.01 needs at least 99. Hold out more images",
        ),
        (
            np.arange(47.0), 1 / 49,
            "47 calibration images: the smallest p-value they allow is 0.0208; "
            "a false-alarm rate of 0.0204082 needs at least 48. Hold out more images",
        ),
    ],
)  # fmt: skip
def test_too_few_images_are_one_clear_line(scores, rate, message):
    with pytest.raises(InputError) as refused:
        Calibration.of(scores, rate)
    assert str(refused.value) == message


@pytest.mark.parametrize(("rate", "needed"), [(0.05, 19), (0.01, 99), (0.1, 9), (1 / 3, 2), (1 / 49, 48), (0.9, 1)])
def test_as_many_images_as_it_asks_for_are_enough(rate, needed):
    Calibration.of(np.arange(float(needed)), rate)
    with pytest.raises(InputError, match=f" needs at least {needed}\\. "):
        Calibration.of(np.arange(float(needed - 1)), rate)


def test_scores_without_a_value_are_left_out():
    fitted = Calibration.of(np.array([3.0, np.nan, 1.0, np.inf, 2.0, -np.inf]), 0.25)
    assert fitted.scores.tolist() == [1, 2, 3]
    assert fitted.scores.dtype == np.float32


def test_p_values_of_exchangeable_images_are_uniform():
    """Split conformal: P(p <= k / (n + 1)) = k / (n + 1), over draws of calibration and test images alike."""
    rng, n, draws = np.random.default_rng(3), 19, 4000
    found = np.array([calibration(row[:n]).p_values(row[n:])[0] for row in rng.gumbel(size=(draws, n + 1))])
    counts = np.bincount(np.rint(found * (n + 1)).astype(int), minlength=n + 2)[1:]
    assert counts.sum() == draws
    expected, deviation = draws / (n + 1), np.sqrt(draws / (n + 1))
    assert np.abs(counts - expected).max() < 4 * deviation
    assert abs((found <= 0.05).mean() - 0.05) < 4 * np.sqrt(0.05 * 0.95 / draws)


# --- Per class ---

NAMES = ("cat", "dog", "ship", "yak")


def per_class(scores, predicted, rate=0.1):
    return Calibration.of(np.asarray(scores), rate, np.asarray(predicted), NAMES)


def drawn(rng, images, weights=(0.5, 0.3, 0.2, 0)):
    """Scores with ties, and predicted classes of which each has scores of its own size."""
    predicted = rng.choice(4, images, p=weights)
    return np.round(rng.normal(size=images) * (1 + predicted) + 2 * predicted, 1), predicted


def test_per_class_an_image_is_compared_with_those_of_its_predicted_class():
    rng = np.random.default_rng(0)
    scores, predicted = drawn(rng, 200)
    fitted = per_class(scores, predicted)
    asked, asked_of = drawn(rng, 60)
    asked = np.append(asked, [np.inf, -np.inf, np.nan]).astype(np.float32)
    asked_of = np.append(asked_of, [0, 1, 2])
    found = fitted.p_values(asked, asked_of)
    known = scores.astype(np.float32)
    for one, k, p_value in zip(asked, asked_of, found, strict=True):
        own = known[predicted == k]
        assert np.isnan(p_value) if np.isnan(one) else p_value == np.float32(float(by_definition(own, one)))
    assert found.dtype == np.float32
    assert fitted.p_values(asked[:0], asked_of[:0]).shape == (0,)


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.25])
def test_each_class_has_its_threshold(rate):
    rng = np.random.default_rng(1)
    fitted = per_class(*drawn(rng, 300), rate)
    scores, predicted = drawn(rng, 500, (0.25, 0.25, 0.25, 0.25))
    thresholds = np.float32([fitted.threshold(rate, k) for k in range(4)])
    assert ((fitted.p_values(scores, predicted) <= rate) == (scores.astype(np.float32) > thresholds[predicted])).all()
    assert fitted.thresholds(rate, NAMES) == dict(zip(NAMES, map(float, thresholds), strict=True))
    assert Calibration(fitted.scores).thresholds(rate, NAMES) == fitted.threshold(rate, 3)


def test_what_is_taken_for_a_class_that_known_images_are_hardly_ever_taken_for_is_compared_with_all():
    rng = np.random.default_rng(2)
    scores, predicted = drawn(rng, 400)
    predicted[7:10] = 3  # three of 400, too few for themselves
    fitted = per_class(scores, predicted)
    assert sorted(fitted.by_class) == [0, 1, 2]
    pooled = Calibration.of(scores, 0.1)
    np.testing.assert_array_equal(fitted.p_values(scores, np.full(400, 3)), pooled.p_values(scores))
    never = per_class(scores, np.where(predicted == 3, 0, predicted))
    np.testing.assert_array_equal(never.p_values(scores, np.full(400, 3)), pooled.p_values(scores))


def test_classes_of_too_few_images_are_named_with_their_images_and_what_to_do():
    predicted = np.repeat([0, 1, 2, 3], [200, 12, 8, 1])
    with pytest.raises(InputError) as refused:
        per_class(np.arange(221.0), predicted, 0.05)
    assert str(refused.value) == (
        "calibration per class: too few calibration images by predicted class: dog 12, ship 8, yak 1; a false-alarm "
        "rate of 0.05 needs at least 19 of each. Hold out more images, or pool them (`calibration: pooled`)"
    )
    images = [19] * 10 + [18] * 12
    with pytest.raises(InputError, match="k18 18, k19 18 and 2 more; a false-alarm"):
        Calibration.of(
            np.arange(float(sum(images))), 0.05, np.repeat(np.arange(22), images), [f"k{k}" for k in range(22)]
        )


@pytest.mark.parametrize("images", [9, 10])
def test_as_many_images_of_a_class_as_are_asked_for_are_enough(images):
    predicted = np.repeat([0, 1], [50, images])
    fitted = per_class(np.arange(50.0 + images), predicted)
    assert len(fitted.by_class[1]) == images
    with pytest.raises(InputError, match=r"dog 8; a false-alarm rate of 0\.1 needs at least 9 of each"):
        per_class(np.arange(58.0), predicted[:58])


def test_per_class_scores_without_a_value_are_left_out_with_their_classes():
    scores = np.append(np.arange(40.0), [np.nan, np.inf])
    fitted = per_class(scores, np.append(np.repeat([0, 1], 20), [2, 3]))
    assert fitted.scores.tolist() == list(range(40))
    assert fitted.predicted.tolist() == [0] * 20 + [1] * 20


def test_a_calibration_per_class_is_not_used_without_classes():
    with pytest.raises(TypeError, match="predicted classes"):
        per_class(np.arange(40.0), np.zeros(40, int)).p_values(np.arange(3.0))


def test_known_images_of_each_predicted_class_are_called_unknown_at_the_rate_and_pooled_ones_are_not():
    rng, rate, draws = np.random.default_rng(4), 0.1, 300
    shares = {"pooled": np.zeros(3), "per_class": np.zeros(3)}
    for _ in range(draws):
        scores, predicted = drawn(rng, 700)
        known, test = slice(0, 200), slice(200, None)
        for kind, found in shares.items():
            classes = predicted[known] if kind == "per_class" else None
            fitted = Calibration.of(scores[known], rate, classes, NAMES)
            called = fitted.p_values(scores[test], predicted[test]) <= rate
            found += [called[predicted[test] == k].mean() / draws for k in range(3)]
    assert shares["pooled"][0] < 0.01 < 0.3 < shares["pooled"][2]
    assert (shares["per_class"] < rate + 0.01).all()
    assert (shares["per_class"] > rate - 0.03).all()  # a class of 40 images allows 4 of 41 at most
