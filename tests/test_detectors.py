"""Representations and detectors, on data whose answer is known."""

import functools

import pytest
import torch
from torch import nn

from gradosr.detectors import DETECTORS, Observation, OneClassDetector, TransferDetector, restore
from gradosr.errors import ClassifierError
from gradosr.gradients import GradientEngine, SquaredNorms
from gradosr.metrics import auroc
from gradosr.representations import Standardiser, coordinate_names, log_norms, representation

DEAD = 4  # the last coordinate, of five
NAMES = ("a", "b", "c", "d", "dead")
RECIPE = {"hidden": 16, "epochs": 40, "learning_rate": 0.01, "weight_decay": 0.01, "batch_size": 32, "seed": 0}


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
    observation, is_unknown = observed(200, 200)
    return TransferDetector.fit(observation, is_unknown, observed(150, seed=1)[0], **RECIPE | recipe)


FITTED = {
    "one_class": lambda: OneClassDetector.fit(observed(300)[0], logits=True),
    "one_class, gradients alone": lambda: OneClassDetector.fit(observed(300)[0], logits=False),
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
    assert {name.split(",")[0] for name in FITTED} == set(DETECTORS)


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
    with pytest.raises(KeyError, match="mahalanobis"):
        restore("mahalanobis", {})


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
        for logits in (True, False):
            scores = OneClassDetector.fit(mirrored, logits=logits).score(mirrored)
            together = torch.stack([scores, known.logits_BK.amax(1)])
            assert torch.corrcoef(together)[0, 1] < -0.8


def test_one_class_scores_are_known_deviations_and_the_logit_can_be_left_out():
    known, _ = observed(300)
    alone, both = (OneClassDetector.fit(known, logits=logits) for logits in (False, True))
    projection = alone.score(known)
    torch.testing.assert_close(projection.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(projection.std(), torch.tensor(1.0))
    confidence = known.logits_BK.amax(1)
    expected = projection - (confidence - confidence.mean()) / confidence.std()
    torch.testing.assert_close(both.score(known), expected)
    louder = Observation(known.log_norms_BC, known.logits_BK + 7)
    assert torch.equal(alone.score(louder), projection)
    assert (both.score(louder) < both.score(known)).all()


# --- Transfer ---


@pytest.mark.parametrize("logit", [0.0, 0.5, -3e4])
@pytest.mark.parametrize("logits", [True, False])
def test_one_class_needs_known_images_of_different_confidence(logits, logit):
    known, _ = observed(40)
    rounding = 1 + 1e-7 * torch.randn(40, 1)
    with pytest.raises(ClassifierError) as refused:
        OneClassDetector.fit(Observation(known.log_norms_BC, logit * rounding * torch.ones(40, 3)), logits=logits)
    assert str(refused.value).endswith(
        "for each of 40 known images: they lose confidence in no direction; check the classifier's weights "
        "and the images"
    )


def test_transfer_finds_unknown_images_of_other_draws():
    detector = transfer()
    assert all(found_by(detector, seed) > 0.9 for seed in (9, 10, 11))


def test_transfer_is_balanced_and_not_won_by_the_larger_side():
    observation, is_unknown = observed(400, 20)
    detector = TransferDetector.fit(observation, is_unknown, observed(150, seed=1)[0], **RECIPE)
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
