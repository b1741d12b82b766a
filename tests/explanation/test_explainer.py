"""Explanations of a tiny bundle: parts that add up, ranks among the held-out images, words."""

from pathlib import Path

import numpy as np
import pytest
import torch
from test_learned import learned, seen
from tiny import ARCH, CLASSES, CPU, make_bundle

from gradosr.bundle.bundle import load_bundle
from gradosr.detectors import OneClassDetector
from gradosr.detectors.baselines.logits import Energy
from gradosr.errors import BundleError
from gradosr.explanation import Explainer, Explanation, Measured
from gradosr.explanation.explainer import read_known
from gradosr.explanation.words import sentences, short
from gradosr.scoring.scorer import Scorer
from gradosr.store import Store


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("explained") / "bundle")
    make_bundle(Store(), uri)
    return uri


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(0, 256, (7, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def explained(place: str, images: torch.Tensor) -> list[Explanation]:
    return Explainer.load(Store(), place, (ARCH,), CPU)(images)


def test_parts_of_every_detector_add_up_to_its_score() -> None:
    fresh = seen(50, 1)
    detector = learned(torch.randn(33))
    for one in (detector, detector.base, Energy()):
        total = torch.stack(list(one.contributions(fresh).values())).sum(0)
        torch.testing.assert_close(total, one.score(fresh))
    assert isinstance(detector.base, OneClassDetector)
    assert list(detector.contributions(fresh)) == ["max_logit", "gradients", "middle", "beyond", "labels"]


def test_an_explanation_has_the_score_and_what_adds_to_it(
    explained: list[Explanation], place: str, images: torch.Tensor
) -> None:
    scores = Scorer(make_bundle(Store(), place), CPU).score(images)
    for i, one in enumerate(explained):
        assert one.unknown_score == pytest.approx(float(scores.unknown_score[i]), abs=1e-5)
        assert sum(part.value for part in one.parts) == pytest.approx(one.unknown_score, abs=1e-4)
        assert one.predicted_class == CLASSES[scores.predicted_index[i]]
    names = [part.name for part in explained[0].layers]
    assert names[:2] == ["all_hot/body.0.weight", "all_hot/body.1.weight"]
    assert len(names) == len(scores.representation_BC[0])


def test_ranks_are_those_among_the_held_out_images(explained: list[Explanation], place: str) -> None:
    known = make_bundle(Store(), place).held_out.calibration["float32"]
    values = known.log_norms_BC.half().float()
    for one in explained:
        for column, layer in enumerate(one.layers):
            below = (values[:, column] < layer.value).float().mean().item()
            same = (values[:, column] == torch.tensor(layer.value)).float().mean().item()
            assert layer.known_below == pytest.approx(below + same / 2)
        assert all(0 <= part.known_below <= 1 for part in one.parts)


def test_an_image_unlike_the_known_ones_is_told_by_its_parts(place: str) -> None:
    white = torch.full((1, 3, 16, 16), 255, dtype=torch.uint8)
    (one,) = Explainer.load(Store(), place, (ARCH,), CPU)(white)
    assert "farther from every known class" in " ".join(sentences(one))
    assert "odd in the middle" in short(one) or "far from everything" in short(one)


def test_a_bundle_without_held_out_images_explains_without_comparing(place: str, images: torch.Tensor) -> None:
    bundle = make_bundle(Store(), place)
    (one, *_) = Explainer(Scorer(bundle, CPU), None)(images)
    assert all(part.known_below is None for part in (*one.parts, *one.layers))
    assert sentences(one) == [
        "The bundle keeps nothing of its held-out images to compare with; the bars show what adds to the score."
    ]


def test_a_score_that_is_not_finite_is_not_explained(tmp_path: Path) -> None:
    arch, white = "tiny_net:bursting", torch.full((1, 3, 16, 16), 255, dtype=torch.uint8)
    make_bundle(Store(), str(tmp_path), arch=arch)
    explained = Explainer.load(Store(), str(tmp_path), (arch,), CPU)
    found, missing = explained(torch.cat([white // 2, white]))
    assert found is not None
    assert missing is None


def test_what_is_compared_with_comes_from_the_bundle_that_was_loaded(place: str, tmp_path: Path) -> None:
    make_bundle(Store(), str(tmp_path), seed=1)
    digest = load_bundle(Store(), place, (ARCH,)).digest
    assert read_known(Store(), place, digest, "float32") is not None
    with pytest.raises(BundleError, match="replaced since it was loaded; load it again"):
        read_known(Store(), str(tmp_path), digest, "float32")


def test_words_tell_what_stands_out_and_no_more() -> None:
    def one(parts: tuple[Measured, ...], layers: tuple[Measured, ...] = (), unknown: bool = True) -> Explanation:
        return Explanation(2.0, 0.01, unknown, "cat", 0.5, parts, layers, None)

    loud = one((Measured("max_logit", 1.2, 0.991), Measured("gradients", 0.1, 0.6), Measured("middle", 0.4, 0.97)))
    assert sentences(loud) == [
        "The classifier is less sure of any class than for 99.1\u00a0% of known images.",
        "The activations in the middle of the network are farther from every known class than for 97.0\u00a0% of known "
        "images.",
    ]
    assert short(loud) == "unsure of any class, odd in the middle of the network"
    quiet = Measured("max_logit", 0.2, 0.7)
    assert sentences(one((quiet,)))[0].startswith("No single part stands out")
    assert sentences(one((quiet,), unknown=False)) == ["Nothing stands out: the image is like the known ones."]
    layers = tuple(Measured(f"all_hot/{i}.weight", 1.0, 1 - 0.001 * i) for i in range(5))
    told = sentences(one((quiet,), (*layers, Measured("all_hot/x", 1.0, 0.004), Measured("all_hot/y", 1.0, 0.5))))
    assert told[1] == "The gradient of 0.weight (all_hot) is larger than for all known images."
    assert len(told) == 5
    assert told[-1] == "3 more gradients lie beyond those of known images, too."


def test_a_new_name_of_a_part_is_told_as_it_is(tmp_path: Path) -> None:
    part = Measured("novelty", 1.0, 0.99)
    assert np.all(["novelty" in short(Explanation(1, 0.1, True, "cat", 0.5, (part,), (), None))])
