"""Representations and detectors, on data whose answer is known."""

import functools
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from gradosr.config import BASELINES, DETECTORS, OneClassSettings, OneClassWeights, TransferSettings
from gradosr.detectors import ClassSplit, Known, Observation, OneClassDetector, TransferDetector, restore
from gradosr.detectors.gaussian import ClassGaussian
from gradosr.detectors.scaling import scaled_energy
from gradosr.errors import ClassifierError
from gradosr.gradients import GradientEngine, Head, SquaredNorms
from gradosr.lab.evaluation.metrics import auroc
from gradosr.representations import Standardiser, coordinate_names, log_norms, representation

DEAD = 4  # the last coordinate, of five
NAMES = ("a", "b", "c", "d", "dead")
RECIPE = TransferSettings(hidden=16, epochs=40, learning_rate=0.01, weight_decay=0.01, batch_size=32)


def observed(known, unknown=0, seed=0, scale=1.0):
    """Known images with a confidence that shrinks coordinate a; unknown ones lie off in b and c, at no high logit."""
    draws = torch.Generator().manual_seed(seed)
    n = known + unknown
    is_unknown = torch.arange(n) >= known
    confidence = (0.2 + torch.rand(n, generator=draws)) * ~is_unknown
    values = 0.3 * torch.randn(n, 5, generator=draws)
    values[:, 0] -= 3 * confidence
    values[:, 1:3] += 2.0 * is_unknown[:, None]
    values[:, DEAD] = -20.0
    logits = torch.zeros(n, 3)
    logits[torch.arange(n), torch.randint(3, (n,), generator=draws)] = 1 + 8 * confidence
    return Observation(scale * values + 5 * (scale - 1), logits), is_unknown


@functools.cache
def transfer(**recipe):
    split = ClassSplit(*observed(200, 200), observed(150, seed=1)[0])
    return TransferDetector.trained(split, RECIPE.model_copy(update=recipe))


def known_of(observation, head=None):
    return Known(observation, observation.logits_BK.argmax(1), head)


ALONE = {"max_logit": 0.0, "gradients": 1.0, "scale": 0.0, "middle": 0.0, "beyond": 0.0}


def one_class(observation, **weights):
    return OneClassDetector.fit(known_of(observation), one_objective(**weights))


def one_objective(**weights):
    return OneClassSettings(objectives=("predicted",), weights=OneClassWeights(**weights))


FITTED = {
    "one_class": lambda: one_class(observed(300)[0]),
    "one_class, gradients alone": lambda: one_class(observed(300)[0], **ALONE),
    "transfer": transfer,
    "transfer, moved": lambda: transfer().moved(observed(150, seed=2, scale=3.0)[0]),
}


def scale_of(name):
    return 3.0 if name == "transfer, moved" else 1.0


def found_by(detector, seed=9, scale=1.0):
    observation, is_unknown = observed(300, 300, seed, scale)
    return auroc(detector.score(observation).numpy(), is_unknown.numpy())


# --- The table ---


def test_every_detector_of_the_table_is_tested():
    assert {name.split(",")[0] for name in FITTED} == set(DETECTORS) - set(BASELINES)


@pytest.mark.parametrize("name", FITTED)
def test_scores_are_finite_float32_one_per_image_and_higher_for_unknown(name):
    detector = FITTED[name]()
    observation, is_unknown = observed(100, 100, 9, scale_of(name))
    scores = detector.score(observation)
    assert (scores.shape, scores.dtype, scores.requires_grad) == ((200,), torch.float32, False)
    assert scores.isfinite().all()
    assert scores[is_unknown].mean() > scores[~is_unknown].mean()
    assert found_by(detector, scale=scale_of(name)) > 0.9
    assert torch.equal(detector.score(observation[~is_unknown]), scores[~is_unknown])
    torch.testing.assert_close(detector.score(observation[torch.tensor([7])]), scores[7:8])
    assert detector.score(observation[torch.tensor([], dtype=torch.long)]).shape == (0,)


@pytest.mark.parametrize("name", FITTED)
def test_arrays_bring_back_the_same_scores(name):
    detector = FITTED[name]()
    arrays = {key: value.clone() for key, value in detector.arrays().items()}
    assert all(isinstance(value, torch.Tensor) and not value.requires_grad for value in arrays.values())
    again = restore(name.split(",")[0], arrays)
    assert type(again) is type(detector)
    observation = observed(50, 50, 9)[0]
    assert torch.equal(again.score(observation), detector.score(observation))
    for key in arrays:
        with pytest.raises(KeyError, match=key):
            restore(name.split(",")[0], {k: v for k, v in arrays.items() if k != key})


@pytest.mark.parametrize("name", FITTED)
def test_a_coordinate_that_carries_nothing_is_dropped_by_name(name):
    detector = FITTED[name]()
    assert detector.dropped(NAMES) == ("dead",)
    observation, _ = observed(20, 20, 9)
    wild = Observation(observation.log_norms_BC.clone(), observation.logits_BK)
    wild.log_norms_BC[:, DEAD] = torch.nan
    assert torch.equal(detector.score(wild), detector.score(observation))


@pytest.mark.parametrize("name", FITTED)
def test_an_image_without_numbers_leaves_its_neighbours_alone(name):
    detector = FITTED[name]()
    observation, _ = observed(4, 4, 9)
    expected = detector.score(observation)
    observation.log_norms_BC[2, 0] = torch.nan
    scores = detector.score(observation)
    assert scores[2].isnan()
    rest = torch.arange(8) != 2
    assert torch.equal(scores[rest], expected[rest])


def test_an_unknown_kind_is_a_key_error():
    with pytest.raises(KeyError, match="nonsense"):
        restore("nonsense", {})


# --- Standardising ---


def test_standardised_values_have_mean_zero_and_deviation_one():
    values = torch.randn(500, 4) * torch.tensor([1e-3, 1.0, 10.0, 0.0]) + torch.tensor([5.0, -3.0, 100.0, 7.0])
    fitted = Standardiser.fit(values)
    assert fitted.kept_D.tolist() == [0, 1, 2]
    assert fitted.dropped(("w", "x", "y", "z")) == ("z",)
    standard = fitted(values)
    torch.testing.assert_close(standard.mean(0), torch.zeros(3), atol=2e-3, rtol=0)
    torch.testing.assert_close(standard.std(0), torch.ones(3), atol=2e-3, rtol=0)
    torch.testing.assert_close(fitted(values[:2])[:, 1], (values[:2, 1] - values[:, 1].mean()) / values[:, 1].std())


# --- One class ---


def test_one_class_is_oriented_by_confidence_whichever_way_the_coordinates_run():
    """Known images at low confidence score high, though every coordinate is mirrored or none."""
    for sign in (1, -1):
        known, _ = observed(300)
        mirrored = Observation(sign * known.log_norms_BC, known.logits_BK)
        for weights in ({}, ALONE):
            scores = one_class(mirrored, **weights).score(mirrored)
            together = torch.stack([scores, known.logits_BK.amax(1)])
            assert torch.corrcoef(together)[0, 1] < -0.8


def test_one_class_scores_are_known_deviations_and_a_part_can_be_left_out():
    known, _ = observed(300)
    alone, both = one_class(known, **ALONE), one_class(known, **ALONE | {"max_logit": 0.5})
    projection = alone.score(known)
    torch.testing.assert_close(projection.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(projection.std(), torch.tensor(1.0))
    confidence = known.logits_BK.amax(1)
    expected = projection - 0.5 * (confidence - confidence.mean()) / confidence.std()
    torch.testing.assert_close(both.score(known), expected)
    louder = Observation(known.log_norms_BC, known.logits_BK + 7)
    assert torch.equal(alone.score(louder), projection)
    assert (both.score(louder) < both.score(known)).all()


def test_one_class_projects_on_the_predicted_classes_own_direction():
    """Confidence lowers coordinate a in one class and raises it in the other; one direction for both finds neither."""
    draws = torch.Generator().manual_seed(3)
    predicted, confidence = torch.arange(400) % 2, torch.rand(400, generator=draws)
    sign = 1.0 - 2 * predicted
    log_norms = torch.stack([sign * confidence, torch.randn(400, generator=draws)], 1)
    logits = torch.nn.functional.one_hot(predicted, 2) * (1 + confidence[:, None])
    scores = one_class(Observation(log_norms, logits), **ALONE).score(Observation(log_norms, logits))
    for k in (0, 1):
        assert torch.corrcoef(torch.stack([scores, confidence])[:, predicted == k])[0, 1] < -0.9


def test_a_class_of_few_images_takes_the_direction_of_all():
    known, _ = observed(301)
    rare = torch.arange(301) == 300
    known.logits_BK[rare] = torch.tensor([0.0, 0.0, 0.0])
    known.logits_BK[:, 2] -= 100.0 * ~rare
    detector = one_class(known, **ALONE)
    directions = torch.nn.functional.normalize(detector.arrays()["direction_KD"])
    assert directions[0] @ directions[2] > 0.9 or directions[1] @ directions[2] > 0.9
    assert detector.score(known).isfinite().all()


def with_activations(count, seed, far=False):
    """Features and middle activations of three classes; far images have another middle, and look as sure."""
    draws = torch.Generator().manual_seed(seed)
    known, _ = observed(count, seed=seed)
    head = Head(torch.eye(3, 8), torch.zeros(3))
    middle = torch.eye(3, 6)[known.logits_BK.argmax(1)] + 0.02 * torch.randn(count, 6, generator=draws)
    if far:
        middle = middle.flip(1)
    features = torch.cat([known.logits_BK, torch.rand(count, 5, generator=draws)], 1)
    return Observation(known.log_norms_BC, features @ head.weight_KF.T, features, middle), head


def test_what_is_sure_at_the_last_layer_and_strange_in_the_middle_is_found():
    seen, head = with_activations(300, 0)
    detector = OneClassDetector.fit(known_of(seen, head), one_objective())
    without = OneClassDetector.fit(known_of(seen, head), one_objective(middle=0, beyond=0))
    fresh, strange = with_activations(200, 5)[0], with_activations(200, 5, far=True)[0]
    is_far = (torch.arange(400) >= 200).numpy()
    found = [auroc(torch.cat([one.score(fresh), one.score(strange)]).numpy(), is_far) for one in (detector, without)]
    assert found[0] > 0.95
    assert found[1] == pytest.approx(0.5)
    arrays = detector.arrays()
    assert torch.equal(restore("one_class", arrays).score(fresh), detector.score(fresh))
    for key in arrays:
        with pytest.raises(KeyError, match=key):
            restore("one_class", {k: v for k, v in arrays.items() if k != key})


def test_beyond_moves_none_but_images_that_are_strange_in_the_middle():
    seen, head = with_activations(300, 0)
    plain, more = (OneClassDetector.fit(known_of(seen, head), one_objective(beyond=weight)) for weight in (0, 2))
    fresh, strange = with_activations(200, 5)[0], with_activations(200, 5, far=True)[0]
    moved, moved_far = (more.score(one) - plain.score(one) for one in (fresh, strange))
    assert (moved == 0).float().mean() > 0.95
    assert (moved >= 0).all()
    assert (moved_far > 1).all()


def test_known_images_are_not_strange_in_the_middle_for_not_being_fitted_on():
    """80 channels and 200 images: what the Gaussian was fitted on is 7 deviations nearer than other images."""
    draws = torch.Generator().manual_seed(0)
    seen, _ = observed(1200)
    seen = replace(seen, middle_BM=torch.randn(1200, 80, generator=draws))
    detector = one_class(seen[torch.arange(200)], max_logit=0, gradients=0, scale=0, middle=1, beyond=0)
    fresh = detector.score(seen[torch.arange(200, 1200)])
    assert abs(fresh.mean()) < 0.6
    assert 0.7 < fresh.std() < 1.3


def test_scaled_energy_is_its_formula():
    features, head = torch.randn(5, 30), Head(torch.randn(4, 30), torch.randn(4))
    for row, energy in zip(features, scaled_energy(features, head, 0.1), strict=True):
        positive = sorted((max(v, 0.0) for v in row.tolist()), reverse=True)
        factor = math.exp(sum(positive) / sum(positive[:3]))
        logits = head.weight_KF @ (factor * row) + head.bias_K
        assert energy.item() == pytest.approx(-logits.logsumexp(0).item(), rel=1e-4)
    assert scaled_energy(torch.zeros(1, 30), head, 0.1).isfinite().all()


def test_gaussian_distances_are_those_of_the_shrunk_covariance():
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3 * 2  # class 1 has no image
    values = torch.randn(90, 4, generator=draws) @ torch.randn(4, 4, generator=draws) + 50 * labels[:, None]
    fitted = ClassGaussian.fit(values, labels, shrinkage=0.0)
    rest = values - torch.stack([values[labels == k].mean(0) for k in (0, 2, 4)])[labels // 2]
    precision = torch.linalg.inv(rest.double().T @ rest.double() / 90)
    for row, distances in zip(values[:5], fitted.squared_distances(values[:5]), strict=True):
        for k, distance in zip((0, 2, 4), distances, strict=True):
            away = (row - values[labels == k].mean(0)).double()
            assert distance.item() == pytest.approx((away @ precision @ away).item(), rel=1e-2, abs=1e-3)
    flat = ClassGaussian.fit(torch.cat([values, torch.ones(90, 1)], 1), labels)
    assert flat.squared_distances(torch.ones(1, 5)).isfinite().all()


def test_the_mean_of_views_is_taken_image_by_image():
    views = Observation(
        torch.arange(8.0).view(4, 2), torch.arange(12.0).view(4, 3), None, None, {"w": torch.arange(4.0)}
    )
    mean = views.mean_of_views(2)
    assert mean.log_norms_BC.tolist() == [[2.0, 3.0], [4.0, 5.0]]
    assert mean.watched["w"].tolist() == [1.0, 2.0]
    assert mean.features_BF is None


# --- Transfer ---


@pytest.mark.parametrize("logit", [0.0, 0.5, -3e4])
@pytest.mark.parametrize("weights", [{}, ALONE])
def test_one_class_needs_known_images_of_different_confidence(weights, logit):
    known, _ = observed(40)
    rounding = 1 + 1e-7 * torch.randn(40, 1)
    with pytest.raises(ClassifierError) as refused:
        one_class(Observation(known.log_norms_BC, logit * rounding * torch.ones(40, 3)), **weights)
    assert str(refused.value).endswith(
        "for each of 40 known images: they lose confidence in no direction; check the classifier's weights "
        "and the images"
    )


def test_transfer_finds_unknown_images_of_other_draws():
    detector = transfer()
    assert all(found_by(detector, seed) > 0.9 for seed in (9, 10, 11))


def test_transfer_is_balanced_and_not_won_by_the_larger_side():
    observation, is_unknown = observed(400, 20)
    detector = TransferDetector.trained(ClassSplit(observation, is_unknown, observed(150, seed=1)[0]), RECIPE)
    other, truth = observed(200, 200, 9)
    called = detector.score(other) > 0
    assert (called == truth).float().mean() > 0.9


def test_moving_changes_the_standardiser_alone():
    detector = transfer()
    elsewhere, _ = observed(150, seed=2, scale=3.0)
    moved = detector.moved(elsewhere)
    before, after = detector.arrays(), moved.arrays()
    assert {key for key in before if not torch.equal(before[key], after[key])} == {"mean_D", "std_D"}
    torch.testing.assert_close(after["mean_D"], elsewhere.log_norms_BC[:, :DEAD].mean(0))
    torch.testing.assert_close(after["std_D"], elsewhere.log_norms_BC[:, :DEAD].std(0))
    other, is_unknown = observed(200, 200, 9, scale=3.0)
    right = [((one.score(other) > 0) == is_unknown).float().mean() for one in (detector, moved)]
    assert right[0] < 0.75, "raw scales do not move between networks"
    assert right[1] > 0.9


def test_a_coordinate_dead_on_the_new_classifier_stays_at_its_mean():
    detector = transfer()
    elsewhere, _ = observed(150, seed=2)
    elsewhere.log_norms_BC[:, 1] = -20.0
    moved = detector.moved(elsewhere)
    other, _ = observed(20, 20, 9)
    alive = Observation(other.log_norms_BC.clone(), other.logits_BK)
    other.log_norms_BC[:, 1] = -20.0
    assert torch.equal(moved.score(alive), moved.score(other))
    assert moved.score(other).isfinite().all()
    assert torch.equal(restore("transfer", moved.arrays()).score(other), moved.score(other))


def test_the_seed_decides_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second, other = transfer(epochs=2), transfer(epochs=2), transfer(epochs=2, seed=1)
    assert torch.equal(torch.rand(1), expected)
    observation = observed(10, 10)[0]
    assert torch.equal(first.score(observation), second.score(observation))
    assert not torch.equal(first.score(observation), other.score(observation))


# --- What a detector sees ---


def test_the_representation_is_the_norms_side_by_side_and_named():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()
    engine = GradientEngine(net)
    norms = engine(torch.randn(4, 3, 2, 2), ["all_hot", "predicted"])
    names = coordinate_names(["all_hot", "predicted"], engine.names)
    assert names == ("all_hot/1.weight", "all_hot/1.bias", "predicted/1.weight", "predicted/1.bias")
    assert torch.equal(representation(norms), torch.cat([norms[0].values_BP, norms[1].values_BP], 1))
    expected = representation(norms).log()
    torch.testing.assert_close(log_norms(norms), expected, rtol=1e-5, atol=1e-5)


def test_log_norms_are_finite_where_gradients_vanish_and_move_with_the_scale():
    values = torch.tensor([[4.0, 0.0, 1e-20], [0.0, 0.0, 0.0], [1e30, 1.0, 1e-30]])
    found = log_norms([SquaredNorms(("a", "b", "c"), values, torch.zeros(3, 2), None)])
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    assert found[0, 1] == found[0, 2] == pytest.approx(torch.tensor(4e-10).log().item(), abs=1e-4)
    times = log_norms([SquaredNorms(("a", "b", "c"), 100 * values, torch.zeros(3, 2), None)])
    shift = torch.tensor(100.0).log().expand(2, 3)
    torch.testing.assert_close((times - found)[[0, 2]], shift, rtol=1e-4, atol=1e-4)
    doubles = SquaredNorms(("a", "b", "c"), values.double(), torch.zeros(3, 2), None)
    assert log_norms([doubles]).dtype == torch.float32
