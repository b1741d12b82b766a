"""Published detectors: against their definitions in plain loops, against pytorch-ood, and through a fit and a score."""

import functools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import scipy
import torch
from pytorch_ood import detector as ood
from safetensors.torch import save_file
from tiny import ARCH, CLASSES, CPU, TRANSFORM, labelled_tar
from tiny_net import tiny
from torch import nn

from gradosr.bundle.bundle import load_bundle
from gradosr.config import BASELINES, FitJob
from gradosr.detectors import Known, Observation, detector_class, restore
from gradosr.detectors.baselines.baseline import Baseline
from gradosr.detectors.baselines.distances import Mahalanobis, RelativeMahalanobis, principal_dimension
from gradosr.detectors.gaussian import ClassGaussian
from gradosr.errors import ClassifierError
from gradosr.fit.fitting import fit
from gradosr.gradients import Head
from gradosr.lab.evaluation.metrics import auroc
from gradosr.run.console import Notes
from gradosr.scoring.scorer import Scorer
from gradosr.store import Store

K, F = 4, 24


@functools.cache
def head():
    """The last four features make no logit; logits of nothing are 2: OpenMax has nothing to move where they are 0."""
    weights = 0.4 * torch.randn(K, F, generator=torch.Generator().manual_seed(7))
    weights[:, -4:] = 0
    return Head(weights, 2 + 0.1 * torch.arange(K))


def observed(count, seed, unknown=False, classes=K):
    """Features around the weights of their classes, some predicted wrongly; of unknown images around no class."""
    draws = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    noise = torch.randn(count, F, generator=draws)
    features = (0.3 * noise if unknown else 2 * head().weight_KF[labels] + 0.7 * noise).relu()
    features[:, -4:] += 1.5 * unknown
    logits = features @ head().weight_KF.T + head().bias_K
    norms = torch.randn(count, 5, generator=draws) + 4 * unknown
    gaia = {name: torch.rand(count, generator=draws) + unknown for name in ("max_logit/gaia_z", "uniform/gaia_a")}
    return Observation(norms, logits, features, None, gaia), labels


@functools.cache
def known(count=300):
    seen, labels = observed(count, 0)
    return Known(seen, labels, head())


@functools.cache
def fitted(kind):
    return detector_class(kind).fit(known())


def both(count, seed=9):
    """Known images, then unknown ones."""
    return Observation.joined([observed(count, seed)[0], observed(count, seed + 1, unknown=True)[0]], 2 * count)


def without_numbers(seen, row):
    """Return the observation with nan in all that was seen of one image."""
    here = torch.arange(len(seen)) == row
    tensors = [values.clone() for values in (seen.log_norms_BC, seen.logits_BK, seen.features_BF)]
    watched = {name: values.masked_fill(here, torch.nan) for name, values in seen.watched.items()}
    for values in tensors:
        values[row] = torch.nan
    return Observation(*tensors, None, watched)


# --- The table ---


@pytest.mark.parametrize("kind", BASELINES)
def test_the_class_of_every_line_is_a_baseline(kind):
    assert issubclass(detector_class(kind), Baseline)


EXPECTED = {"openmax": (0.8, 0.9), "negative_gradient_sum": (0, 0.05)}
"""AUROC of those that are not almost perfect: OpenMax takes a share of every large logit, of few classes each."""


@pytest.mark.parametrize("kind", BASELINES)
def test_scores_are_finite_float32_one_per_image_and_higher_for_unknown(kind):
    seen, detector = both(100), fitted(kind)
    is_unknown = torch.arange(200) >= 100
    scores = detector.score(seen)
    assert (scores.shape, scores.dtype, scores.requires_grad) == ((200,), torch.float32, False)
    assert scores.isfinite().all()
    found = auroc(scores.numpy(), is_unknown.numpy())
    low, high = EXPECTED.get(kind, (0.95, 1))
    assert low <= found <= high
    torch.testing.assert_close(detector.score(seen[is_unknown]), scores[is_unknown], rtol=1e-5, atol=1e-5)
    assert detector.score(seen[torch.tensor([], dtype=torch.long)]).shape == (0,)
    assert detector.dropped(("a", "b")) == ()


@pytest.mark.parametrize("kind", BASELINES)
def test_arrays_bring_back_the_same_scores(kind):
    detector, seen = fitted(kind), both(20)
    arrays = {name: values.clone() for name, values in detector.arrays().items()}
    again = restore(kind, arrays)
    assert type(again) is type(detector)
    assert torch.equal(again.score(seen), detector.score(seen))
    for name in arrays:
        with pytest.raises(KeyError, match=name):
            restore(kind, {key: values for key, values in arrays.items() if key != name})


@pytest.mark.parametrize("kind", BASELINES)
def test_an_image_without_numbers_leaves_its_neighbours_alone(kind):
    detector, seen = fitted(kind), both(4)
    scores = detector.score(without_numbers(seen, 2))
    assert scores[2].isnan()
    rest = torch.arange(8) != 2
    torch.testing.assert_close(scores[rest], detector.score(seen)[rest], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [0.0, 1e-6, 1e4])
@pytest.mark.parametrize("kind", BASELINES)
def test_scores_of_strange_images_are_finite(kind, size):
    seen = both(10)
    strange = Observation(seen.log_norms_BC, size * seen.logits_BK, size * seen.features_BF, None, dict(seen.watched))
    assert fitted(kind).score(strange).isfinite().all()


@pytest.mark.parametrize("kind", ["scale", "knn", "vim", "mahalanobis", "rmd", "gradnorm"])
def test_a_classifier_without_a_last_linear_layer_is_refused(kind):
    seen, labels = observed(40, 0)
    blind = Observation(seen.log_norms_BC, seen.logits_BK, None, None, seen.watched)
    with pytest.raises(ClassifierError, match="needs a linear layer that makes the logits"):
        detector_class(kind).fit(Known(blind, labels))


@pytest.mark.parametrize("kind", BASELINES)
def test_few_images_and_a_class_without_any_are_enough(kind):
    """Three images, none of the last class, the second of the first class misclassified."""
    seen = observed(3, 4)[0]
    detector = detector_class(kind).fit(Known(seen, torch.tensor([0, 0, 2]), head()))
    assert detector.score(both(10)).isfinite().all()


# --- Each against its definition, slowly, in float64: of known images, the score of one image ---


def image(seen, row):
    """z logits, h features, r log-norms, w watched."""
    watched = {name: values[row].item() for name, values in seen.watched.items()}
    z, h, r = (values[row].double().numpy() for values in (seen.logits_BK, seen.features_BF, seen.log_norms_BC))
    return SimpleNamespace(z=z, h=h, r=r, w=watched)


def softmax(z):
    return np.exp(z) / np.exp(z).sum()


def energy(z):
    return -math.log(sum(math.exp(one) for one in z))


def slow_gen(_known):
    return lambda one: sum((p * (1 - p)) ** 0.1 for p in sorted(softmax(one.z))[-100:])


def slow_scale(_known):
    def score(one):
        positive = sorted(max(v, 0) for v in one.h)
        factor = math.exp(sum(positive) / sum(positive[-round(0.15 * len(positive)) :]))
        return energy(head().weight_KF.double().numpy() @ (factor * one.h) + head().bias_K.double().numpy())

    return score


def slow_knn(known):
    bank = [h / np.linalg.norm(h) for h in known.observation.features_BF.double().numpy()]
    return lambda one: sorted(np.linalg.norm(one.h / np.linalg.norm(one.h) - b) for b in bank)[10 - 1]


def slow_vim(known):
    weight, bias = known.head.weight_KF.double().numpy(), known.head.bias_K.double().numpy()
    origin = -np.linalg.pinv(weight) @ bias
    rest = known.observation.features_BF.double().numpy() - origin
    values, vectors = np.linalg.eig(rest.T @ rest / len(rest))
    beyond = vectors[:, np.argsort(-values)[F // 2 :]]
    norms = [np.linalg.norm(row @ beyond) for row in rest]
    alpha = np.mean([max(row) for row in known.observation.logits_BK.tolist()]) / np.mean(norms)
    return lambda one: alpha * np.linalg.norm((one.h - origin) @ beyond) + energy(one.z)


def slow_openmax(known):
    logits, labels = known.observation.logits_BK.double().numpy(), known.labels_B.numpy()
    classes = {}
    for k in range(logits.shape[1]):
        own = [z for z, label in zip(logits, labels, strict=True) if label == k == z.argmax()]
        if own:
            centre = np.mean(own, 0)
            tail = np.sort([np.linalg.norm(z - centre) for z in own])[-20:]
            classes[k] = centre, tail[0], weibull(10_000 + tail - tail[0])

    def score(one):
        alpha, unknown, revised = min(10, len(one.z)), 0.0, one.z.copy()
        for i, k in enumerate(np.argsort(-one.z)[:alpha], 1):
            strange = 1.0
            if k in classes:
                centre, begin, (shape, scale) = classes[k]
                distance = 10_000 + np.linalg.norm(one.z - centre) - begin
                strange = scipy.stats.weibull_min.cdf(distance, shape, scale=scale)
            revised[k] = one.z[k] * (1 - strange * (alpha + 1 - i) / alpha)
            unknown += one.z[k] - revised[k]
        return unknown + energy(revised)

    return score


def weibull(x):
    """Shape and scale of the highest likelihood, by search."""

    def scale_of(shape):
        return x.max() * np.mean((x / x.max()) ** shape) ** (1 / shape)

    def loss(log_shape):
        shape = math.exp(log_shape)
        return -scipy.stats.weibull_min.logpdf(x, shape, scale=scale_of(shape)).sum()

    found = scipy.optimize.minimize_scalar(loss, bounds=(5, 15), method="bounded", options={"xatol": 1e-9})
    return math.exp(found.x), scale_of(math.exp(found.x))


def gaussian(known, labels):
    """Means by class, and the inverse of the covariance, shrunk by 5 % after every feature is divided by its own."""
    h = known.observation.features_BF.double().numpy()
    means = {k: h[labels == k].mean(0) for k in sorted(set(labels.tolist()))}
    std = h.std(0, ddof=1)
    rest = np.stack([(row - means[k]) / std for row, k in zip(h, labels.tolist(), strict=True)])
    covariance = rest.T @ rest / len(rest)
    shrunk = 0.95 * covariance + 0.05 * np.trace(covariance) / F * np.eye(F)
    return means, np.linalg.inv(shrunk) / np.outer(std, std)


def slow_mahalanobis(known):
    means, precision = gaussian(known, known.labels_B.numpy())
    return lambda one: min((one.h - mean) @ precision @ (one.h - mean) for mean in means.values())


def slow_rmd(known):
    near = slow_mahalanobis(known)
    means, precision = gaussian(known, np.zeros(len(known.labels_B), dtype=int))
    return lambda one: near(one) - (one.h - means[0]) @ precision @ (one.h - means[0])


def slow_gradnorm(_known):
    return lambda one: -sum(abs(h * (p - 1 / len(one.z))) for h in one.h for p in softmax(one.z))


SLOW = {
    "msp": lambda _known: lambda one: -max(softmax(one.z)),
    "max_logit": lambda _known: lambda one: -max(one.z),
    "energy": lambda _known: lambda one: energy(one.z),
    "gen": slow_gen,
    "scale": slow_scale,
    "knn": slow_knn,
    "vim": slow_vim,
    "openmax": slow_openmax,
    "mahalanobis": slow_mahalanobis,
    "rmd": slow_rmd,
    "gradnorm": slow_gradnorm,
    "gradient_sum": lambda _known: lambda one: math.log(sum(math.exp(r) for r in one.r)),
    "negative_gradient_sum": lambda _known: lambda one: -math.log(sum(math.exp(r) for r in one.r)),
    "gaia_z": lambda _known: lambda one: one.w["max_logit/gaia_z"],
    "gaia_a": lambda _known: lambda one: one.w["uniform/gaia_a"],
}


@pytest.mark.parametrize("kind", BASELINES)
def test_equals_its_definition(kind):
    seen, slow = both(5), SLOW[kind](known())
    expected = [float(slow(image(seen, row))) for row in range(10)]
    assert fitted(kind).score(seen).tolist() == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_gen_takes_the_hundred_largest_and_tells_sure_images_apart():
    logits = torch.randn(3, 150, generator=torch.Generator().manual_seed(1))
    found = detector_class("gen").from_arrays({}).score(Observation(torch.empty(3, 0), logits))
    slow = slow_gen(None)
    expected = [slow(SimpleNamespace(z=row.double().numpy())) for row in logits]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)
    sure = torch.tensor([[20.0, 0.0], [25.0, 0.0], [60.0, 0.0]])  # softmax 1 in float32, all of them
    scores = detector_class("gen").from_arrays({}).score(Observation(torch.empty(3, 0), sure))
    assert scores.tolist() == pytest.approx([2 * math.exp(-z / 10) for z in (20, 25, 60)], rel=1e-4)


def test_openmax_takes_a_class_that_was_never_recognised_for_unknown():
    seen, labels = observed(200, 0, classes=K - 1)
    few = Known(seen, labels, head())
    detector, slow = detector_class("openmax").fit(few), slow_openmax(few)
    assert detector.begin_K.isinf().tolist() == [False, False, False, True]
    images = both(5)
    expected = [float(slow(image(images, row))) for row in range(10)]
    assert detector.score(images).tolist() == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_the_principal_subspace_of_vim_has_the_authors_dimension():
    widths = {4096: 1000, 2048: 1000, 2047: 512, 768: 512, 767: 383, 24: 12, 1: 0}
    assert {width: principal_dimension(width, 50_000) for width in widths} == widths
    assert principal_dimension(2048, 100) == 99
    assert fitted("vim").residual_FR.shape == (F, F - 12)


# --- Each against pytorch-ood, on the same logits and features ---


def theirs(kind, seen):
    """pytorch-ood's scores, of the same known images; the definitions differ as said beside each."""
    h, y = known().observation.features_BF, known().labels_B
    weight, bias, count = head().weight_KF, head().bias_K, len(known().labels_B)
    match kind:
        case "msp":
            return ood.MaxSoftmax.score(seen.logits_BK)
        case "max_logit":
            return ood.MaxLogit(None).predict_logits(seen.logits_BK)
        case "energy":
            return ood.EnergyBased(None).predict_logits(seen.logits_BK)
        case "gen":  # the mean, where the paper has the sum; probabilities no nearer to 0 and 1 than 1e-7
            return K * ood.GEN(None, M=100).predict_logits(seen.logits_BK)
        case "scale":
            scale = ood.SCALE(None, lambda maps: maps.flatten(1) @ weight.T + bias, percentile=0.85)
            return scale.predict_feature_maps(seen.features_BF[:, :, None, None])
        case "knn":
            return ood.KNN(None, k=10).fit_features(h, y).predict_features(seen.features_BF)
        case "vim":
            return ood.ViM(None, F // 2, weight, bias).fit_features(h, y).predict_features(seen.features_BF)
        case "openmax":  # the probability
            right, logits = known().observation.logits_BK.argmax(1) == y, known().observation.logits_BK.double()
            detector = ood.OpenMax(None, tailsize=20, alpha=10).fit_logits(logits[right], y[right])
            return detector.predict_logits(seen.logits_BK.double()).logit()
        case "mahalanobis":  # half the distance; the covariance a sum over images; not shrunk
            return 2 * count * ood.Mahalanobis(None).fit_features(h, y).predict_features(seen.features_BF)
        case "rmd":  # likewise, but not half
            return count * ood.RMD(None).fit_features(h, y).predict_features(seen.features_BF)
        case "gradnorm":
            layer = nn.Linear(F, K)
            layer.load_state_dict({"weight": weight, "bias": bias})
            return ood.GradNorm(layer, param_filter=lambda name: name == "weight").to("cpu").predict(seen.features_BF)


def ours(kind, seen):
    """Ours, the Gaussians without shrinkage."""
    h, y = known().observation.features_BF, known().labels_B
    classes, one = (ClassGaussian.fit(h, labels, shrinkage=0.0) for labels in (y, torch.zeros_like(y)))
    if kind == "mahalanobis":
        return Mahalanobis(**vars(classes)).score(seen)
    if kind == "rmd":
        return RelativeMahalanobis(*vars(classes).values(), *vars(one).values()).score(seen)
    return fitted(kind).score(seen)


AGREEING = ("msp", "max_logit", "energy", "gen", "scale", "knn", "vim", "openmax", "mahalanobis", "rmd", "gradnorm")


@pytest.mark.parametrize("kind", AGREEING)
def test_agrees_with_pytorch_ood(kind):
    seen = both(100)
    torch.testing.assert_close(ours(kind, seen).double(), theirs(kind, seen).double(), rtol=1e-4, atol=1e-4)


# --- Through a fit and a score ---


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    """A fit job that would run, but for its detector."""
    folder = tmp_path_factory.mktemp("baselines")
    Store().write(f"{folder}/known/0.tar", labelled_tar(0, 90))
    torch.manual_seed(0)
    save_file(tiny(3).state_dict(), folder / "weights.safetensors")
    classifier = {"arch": ARCH, "args": {"num_classes": 3}, "classes": CLASSES, "transform": TRANSFORM}
    return {
        "classifier": classifier | {"weights": f"{folder}/weights.safetensors"},
        "input": {"kind": "tar", "uri": f"{folder}/known/"},
        "held_out": 0.8,
        "bundle": f"{folder}/bundle",
        "device": "cpu",
    }


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("kind", BASELINES)
def test_is_fitted_saved_loaded_and_scored(kind, mirror, document):
    job = FitJob.model_validate(document | {"detector": {"kind": kind, "mirror": mirror}})
    bundle = fit(job, Notes())
    bundle.save(Store(), job.bundle)
    loaded = load_bundle(Store(), job.bundle, (ARCH,))
    assert (loaded.manifest.detector, loaded.manifest.mirror) == (kind, mirror)
    images = torch.randint(256, (5, 3, 16, 16), dtype=torch.uint8)
    first, again = (Scorer(one, CPU).score(images) for one in (bundle, loaded))
    assert np.isfinite(first.unknown_score).all()
    assert len(set(first.unknown_score.tolist())) == 5
    rounding = 1e-4 * first.unknown_score.std()
    np.testing.assert_allclose(again.unknown_score, first.unknown_score, rtol=0, atol=rounding)
    mirrored = Scorer(loaded, CPU).score(images.flip(3))
    assert np.allclose(mirrored.unknown_score, first.unknown_score, rtol=0, atol=rounding) == mirror
