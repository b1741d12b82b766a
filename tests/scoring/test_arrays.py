"""Published detectors over arrays, in the manner of scikit-learn."""

from typing import Any

import numpy as np
import pytest

import gradosr
from gradosr.errors import ConfigError, InputError


def clouds(seed: int, centre: float, images: int = 300) -> tuple[Any, Any, Any]:
    """Features, labels and logits of three Gaussian classes; `centre` moves them all."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, images)
    features = rng.normal(size=(images, 8)) + 6 * np.eye(8)[labels] + centre * np.eye(8)[7]
    return features, labels, features @ WEIGHT.T


WEIGHT = np.eye(8)[:3]


@pytest.mark.parametrize("kind", ["knn", "mahalanobis", "rmd", "vim", "scale"])
def test_a_detector_over_features_finds_what_lies_elsewhere(kind: str) -> None:
    features, labels, logits = clouds(0, 0)
    detector = gradosr.Detector(kind).fit(features, labels, logits=logits, weight=WEIGHT)
    known, far = clouds(1, 0), clouds(2, 12)
    alarms = detector.predict(known[0], known[2]).mean()
    assert alarms < 0.15
    if kind not in ("scale", "rmd"):  # which look at the largest features, or at what tells the classes apart
        assert detector.predict(far[0], far[2]).mean() > 0.9
    assert detector.p_values(known[0], known[2]).dtype == np.float32


@pytest.mark.parametrize("kind", ["msp", "max_logit", "energy", "gen", "openmax"])
def test_a_detector_over_logits_finds_what_is_not_sure(kind: str) -> None:
    _, labels, logits = clouds(0, 0)
    detector = gradosr.Detector(kind, false_alarm_rate=0.1).fit(labels=labels, logits=logits)
    unsure = np.random.default_rng(3).normal(size=(200, 3)) / 10
    assert detector.score(logits=unsure).mean() > detector.score(logits=logits).mean()


def test_mistakes_about_arrays_are_told() -> None:
    features, labels, logits = clouds(0, 0)
    for call, message in (
        (lambda: gradosr.Detector("gaia_z"), "not a detector over arrays"),
        (lambda: gradosr.Detector("knn").score(features), "fit it first"),
        (lambda: gradosr.Detector("knn").fit(logits=logits), "knn: needs features"),
        (lambda: gradosr.Detector("msp").fit(features), "msp: needs logits"),
        (lambda: gradosr.Detector("mahalanobis").fit(features), "needs labels"),
        (lambda: gradosr.Detector("vim").fit(features, labels, logits=logits), "vim: needs weight"),
        (lambda: gradosr.Detector().fit(features[:, 0]), r"shape \[300\]; expected one row per image"),
        (lambda: gradosr.Detector().fit(features * np.nan), "not finite"),
        (lambda: gradosr.Detector().fit(features, labels[:5]), "5 labels of 300 images"),
    ):
        with pytest.raises(ConfigError, match=message):
            call()
    with pytest.raises(InputError, match="needs at least 19"):
        gradosr.Detector().fit(features[:20])


def test_a_detector_over_arrays_may_be_calibrated_per_class() -> None:
    features, labels, logits = clouds(0, 0, 600)
    spread = features * (1 + 2 * (labels == 2))[:, None]  # images of one class lie farther apart
    others, of, their_logits = clouds(1, 0, 600)
    others = others * (1 + 2 * (of == 2))[:, None]
    alarms = {
        per_class: [
            gradosr.Detector("mahalanobis", per_class=per_class, false_alarm_rate=0.1)
            .fit(spread, labels, logits=logits)
            .predict(others[of == k], their_logits[of == k])
            .mean()
            for k in range(3)
        ]
        for per_class in (False, True)
    }
    assert max(alarms[False]) > 0.2 > min(alarms[True]) > 0.03
    assert max(alarms[True]) < 0.2
    with pytest.raises(ConfigError, match="knn: needs logits"):
        gradosr.Detector("knn", per_class=True).fit(features, labels)
