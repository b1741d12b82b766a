"""Scores of a tiny real bundle: shapes, types, formulas, and what cannot be scored."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from test_bundle import OBJECTIVES, TRANSFORM, made, pixels
from tiny import CPU, fit_one_class

from gradosr.bundle.bundle import Bundle
from gradosr.bundle.calibration import Calibration
from gradosr.classifier.build import build_classifier, normalise
from gradosr.config import ComputeSettings, Precision, Signals, TransformSettings
from gradosr.detectors import Observation, detector_class
from gradosr.errors import ClassifierError, ConfigError, MachineFault
from gradosr.gradients import squared_norms
from gradosr.representations import log_norms
from gradosr.scoring.compute import Compute, pick_device
from gradosr.scoring.observer import Observer
from gradosr.scoring.scorer import Scorer, stored

FEATURES = 1024  # of shufflenet_v2_x0_5


@pytest.fixture(scope="module")
def bundle():
    return made()


@pytest.fixture(scope="module")
def scorer(bundle):
    return Scorer(bundle, CPU)


@pytest.fixture(scope="module")
def mixed():
    """Noise, and images unlike it that are called unknown."""
    return torch.cat([pixels(20, seed=3), 255 * (pixels(4, seed=4) > 127).byte(), torch.zeros_like(pixels(1))])


def changed(bundle, **changes):
    manifest = bundle.manifest.model_copy(update=changes)
    return Bundle(manifest, bundle.classifier, bundle.detector, bundle.calibrations)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_every_array_has_one_row_per_image_and_its_type(scorer, bundle, count):
    scores = scorer.score(pixels(count, seed=1))
    coordinates = len(OBJECTIVES) * len(list(bundle.classifier.parameters()))
    expected = {
        "finite": ((count,), np.bool_),
        "predicted_index": ((count,), np.int32),
        "confidence": ((count,), np.float32),
        "max_logit": ((count,), np.float32),
        "energy": ((count,), np.float32),
        "unknown_score": ((count,), np.float32),
        "p_value": ((count,), np.float32),
        "is_unknown": ((count,), np.bool_),
        "representation_BC": ((count, coordinates), np.float32),
    }
    found = {name: value for name, value in vars(scores).items() if name != "signals"}
    assert {name: (value.shape, value.dtype) for name, value in found.items()} == expected
    assert {name: value.shape for name, value in scores.signals.items()} == {
        name: (count, width) for name, width in scorer.widths.items()
    }
    assert {value.dtype for value in scores.signals.values()} == {np.dtype(np.float16)}
    assert scorer.widths["features"] == FEATURES
    assert len(scorer.observer.coordinates) == coordinates
    assert scores.finite.all()


def test_the_detector_gives_the_same_scores_from_the_signals_alone(scorer, bundle, mixed):
    observation = scorer.observer(mixed).observation
    seen = Observation.from_signals(observation.signals())
    assert torch.equal(bundle.detector.score(seen), bundle.detector.score(observation))
    stored_too = scorer.score(mixed).signals
    for name, values in observation.signals().items():
        np.testing.assert_allclose(stored_too[name], values.numpy(), rtol=1e-3, atol=1e-3)


def test_a_signal_beyond_float16_is_its_largest_number():
    assert stored(torch.tensor([[1e6, -1e6, 1.5]])).tolist() == [[65504.0, -65504.0, 1.5]]


def test_logit_columns_are_their_formulas(scorer, bundle, mixed):
    scores = scorer.score(mixed)
    with torch.no_grad():
        logits = bundle.classifier(normalise(mixed, TRANSFORM)).double().tolist()
    for row, z in enumerate(logits):
        total = sum(math.exp(v) for v in z)
        assert scores.predicted_index[row] == z.index(max(z))
        assert scores.max_logit[row] == pytest.approx(max(z), rel=1e-4, abs=1e-5)
        assert scores.confidence[row] == pytest.approx(math.exp(max(z)) / total, rel=1e-4)
        assert scores.energy[row] == pytest.approx(-math.log(total), rel=1e-4, abs=1e-5)


def test_score_p_value_and_decision_are_the_detectors_and_the_calibrations(scorer, bundle, mixed):
    scores = scorer.score(mixed)
    prepared = normalise(mixed, TRANSFORM)
    norms = [squared_norms(bundle.classifier, prepared, name) for name in OBJECTIVES]
    seen = Observation(log_norms(norms), norms[0].logits_BK, norms[0].features_BF, norms[0].middle_BM)
    expected = bundle.detector.score(seen).numpy()
    np.testing.assert_allclose(scores.unknown_score, expected, rtol=1e-4, atol=1e-5)
    known = bundle.calibrations["float32"].scores
    by_definition = [(1 + sum(known >= one)) / (len(known) + 1) for one in scores.unknown_score]
    np.testing.assert_allclose(scores.p_value, by_definition, rtol=1e-6)
    rate = bundle.manifest.false_alarm_rate
    assert scores.is_unknown.tolist() == [p <= np.float32(rate) for p in scores.p_value]
    assert (
        scores.is_unknown.tolist()
        == (scores.unknown_score > np.float32(bundle.calibrations["float32"].threshold(rate))).tolist()
    )
    assert 0 < scores.is_unknown.sum() < len(mixed), "both sides must be seen here"


def test_a_p_value_equal_to_the_rate_is_unknown(bundle):
    """Rounding to float32 could decide here: p = 1 / 20 and a rate of 0.05."""
    calibration = Calibration(np.linspace(-99, -98, 19, dtype=np.float32))
    tight = Bundle(
        bundle.manifest.model_copy(update={"false_alarm_rate": 0.05}),
        bundle.classifier,
        bundle.detector,
        {"float32": calibration},
    )
    scores = Scorer(tight, CPU).score(pixels(2))
    assert scores.p_value.tolist() == [np.float32(0.05)] * 2
    assert scores.is_unknown.all()


def test_the_representation_is_the_squared_norms_themselves(scorer, bundle, mixed):
    found = scorer.score(mixed).representation_BC
    prepared = normalise(mixed, TRANSFORM)
    expected = torch.cat([squared_norms(bundle.classifier, prepared, name).values_BP for name in OBJECTIVES], 1)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4)
    assert scorer.observer.coordinates[0] == "all_hot/conv1.0.weight"
    assert scorer.observer.coordinates[-1] == "predicted/fc.bias"


def test_features_are_the_input_of_the_last_layer(scorer, bundle, mixed):
    features = torch.from_numpy(scorer.score(mixed).signals["features"]).float()
    with torch.no_grad():
        logits, expected = bundle.classifier.fc(features), bundle.classifier(normalise(mixed, TRANSFORM))
    torch.testing.assert_close(logits, expected, rtol=0.02, atol=0.02)  # float16


def test_scores_of_a_batch_are_those_of_its_images(scorer):
    batch = pixels(4, seed=5)
    together = scorer.score(batch).unknown_score
    alone = [scorer.score(batch[i : i + 1]).unknown_score[0] for i in range(4)]
    np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-3)
    assert scorer.score(batch).unknown_score.tobytes() == together.tobytes()


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_an_image_whose_logits_overflow_has_no_score_and_leaves_its_neighbours_alone(factor):
    broken, batch = made(), pixels(3)
    expected = Scorer(broken, CPU).score(batch)
    batch[1] = 255
    white = normalise(batch, TRANSFORM)[1].mean() - 0.1
    seen = {}
    broken.classifier.register_forward_pre_hook(lambda _, args: seen.update(white=args[0].mean((1, 2, 3)) > white))
    broken.classifier.fc.register_forward_pre_hook(
        lambda _, args: (torch.where(seen["white"][:, None], factor, args[0]),)
    )
    scores = Scorer(broken, CPU).score(batch)
    assert scores.finite.tolist() == [True, False, True]
    assert np.isnan(scores.p_value).tolist() == [False, True, False]
    assert not scores.is_unknown[1]
    np.testing.assert_allclose(scores.unknown_score[[0, 2]], expected.unknown_score[[0, 2]], rtol=1e-3, atol=1e-3)


def test_a_classifier_without_a_linear_head_has_no_features():
    classifier = build_classifier("torchvision:squeezenet1_1", {}, 3)
    transform = TransformSettings(crop=32)
    observed = Observer(classifier, transform, Signals(objectives=("all_hot",)), Compute(torch.device("cpu")))(
        pixels(9)
    )
    detector = fit_one_class(observed)
    source = made()
    manifest = source.manifest.model_copy(update={"arch": "torchvision:squeezenet1_1", "objectives": ("all_hot",)})
    scorer = Scorer(Bundle(manifest, classifier, detector, source.calibrations), CPU)
    assert "features" not in scorer.widths
    assert "features" not in scorer.score(pixels(2)).signals


def test_what_this_machine_lacks_is_not_the_classifiers_fault():
    classifier = build_classifier("torchvision:squeezenet1_1", {}, 3)
    classifier.register_forward_pre_hook(lambda *_: bytearray(1 << 60))
    observer = Observer(classifier, TransformSettings(crop=32), Signals(), Compute(torch.device("cpu")))
    with pytest.raises(MachineFault, match=r"^this machine is at fault, not the data: MemoryError"):
        observer.check(3)


# --- What cannot serve is said before the first image ---


def refused(error, bundle, device="cpu"):
    with pytest.raises(error) as raised:
        Scorer(bundle, ComputeSettings(device=device))
    assert type(raised.value) is error
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_wrong_number_of_classes_is_one_clear_line(bundle):
    assert refused(ClassifierError, changed(bundle, classes=("ant", "bee"))) == (
        "the classifier gives 3 logits, but 2 classes are named; check classifier.classes and args.num_classes"
    )


def with_classifier(bundle, arch, args, size):
    """The bundle around another classifier, with a detector that asks nothing of it but logits."""
    classifier, detector = build_classifier(arch, args, 3), detector_class("max_logit").from_arrays({})
    manifest = bundle.manifest.model_copy(
        update={"arch": arch, "detector": "max_logit", "transform": TransformSettings(crop=size)}
    )
    return Bundle(manifest, classifier, detector, bundle.calibrations)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "args", "size", "message"),
    [
        (
            "torchvision:vit_b_16",
            {"image_size": 32},
            64,
            "the classifier fails on a 64x64 image, as classifier.transform makes them: "
            "Wrong image height! Expected 32 but got 64!",
        ),
        (
            "timm:vit_tiny_patch16_224",
            {"img_size": 32},
            (32, 48),
            "the classifier fails on a 32x48 image, as classifier.transform makes them: "
            "Input width (48) doesn't match model (32).",
        ),
        ("torchvision:alexnet", {}, 32, None),
    ],
)
def test_a_wrong_input_size_is_one_clear_line(bundle, arch, args, size, message):
    found = refused(ClassifierError, with_classifier(bundle, arch, args, size))
    assert found.startswith("the classifier fails on a ")
    assert message in (None, found)


def test_a_classifier_in_training_mode_is_one_clear_line():
    training = made()
    training.classifier.train()
    assert refused(ClassifierError, training) == (
        "the classifier itself is in training mode; call .eval() on the classifier first"
    )


@pytest.mark.parametrize(("name", "value"), [("conv5.0.weight", math.nan), ("fc.bias", math.inf)])
def test_weights_that_are_not_finite_are_named(name, value):
    broken = made()
    with torch.no_grad():
        broken.classifier.state_dict()[name][1] = value
    assert refused(ClassifierError, broken).startswith(f"{name} holds values that are not finite: ")


def test_an_unknown_objective_is_one_clear_line(bundle):
    assert refused(ConfigError, changed(bundle, objectives=("nonsense",))).startswith("objective nonsense: unknown ")


def test_an_unknown_objective_of_known_kind_names_the_classes(bundle):
    assert refused(ConfigError, changed(bundle, objectives=("n_hot:9",))) == (
        "objective n_hot:9: a confounding label of 3 classes has 0 or 2 to 3 ones"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_asked_for_in_vain_is_one_clear_line(bundle):
    assert refused(ConfigError, bundle, "cuda") == (
        "device: cuda, but torch finds no CUDA device here; use device: auto or cpu"
    )
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")


def calibrated(bundle: Bundle, precision: Precision) -> Bundle:
    calibrations = {**bundle.calibrations, precision: bundle.calibrations["float32"]}
    return dataclasses.replace(copy.deepcopy(bundle), calibrations=calibrations)


def test_bfloat16_scores_like_float32_but_for_rounding(bundle: Bundle) -> None:
    batch = pixels(32)
    single = Scorer(copy.deepcopy(bundle), CPU).score(batch)
    half = Scorer(calibrated(bundle, "bfloat16"), ComputeSettings(device="cpu", precision="bfloat16")).score(batch)
    assert half.finite.all()
    for field in ("max_logit", "energy", "unknown_score", "representation_BC"):
        assert getattr(half, field).dtype == np.float32
        assert not np.array_equal(getattr(half, field), getattr(single, field))
    ratio = half.representation_BC / single.representation_BC
    assert np.median(np.abs(np.log(ratio))) < 0.05


def test_max_memory_changes_no_score(bundle: Bundle) -> None:
    batch = pixels(5)
    whole = Scorer(copy.deepcopy(bundle), CPU).score(batch)
    pieces = Scorer(copy.deepcopy(bundle), ComputeSettings(device="cpu", max_memory=1e-9)).score(batch)
    np.testing.assert_allclose(pieces.unknown_score, whole.unknown_score, rtol=1e-5, atol=1e-5)


def test_tf32_without_cuda_is_one_clear_line(bundle: Bundle) -> None:
    with pytest.raises(ConfigError) as refused:
        Scorer(bundle, ComputeSettings(device="cpu", precision="tf32"))
    assert str(refused.value) == ("precision: tf32, which only CUDA devices have; use precision: float32 or bfloat16")


def test_a_precision_without_calibration_is_refused(bundle: Bundle) -> None:
    """Its p-values would be wrong without a word."""
    with pytest.raises(ConfigError) as refused:
        Scorer(bundle, ComputeSettings(device="cpu", precision="bfloat16"))
    assert str(refused.value) == (
        "precision: bfloat16, but the bundle's p-values hold only in float32; fit it with `precisions: [bfloat16]`, "
        "or score in float32"
    )
