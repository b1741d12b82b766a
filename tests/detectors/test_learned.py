"""The learned detector, on data whose answer is known."""

import pytest
import torch
from scipy.stats import spearmanr
from test_detectors import one_class

from gradosr.detectors import Observation, restore
from gradosr.detectors.learned import LearnedDetector, View


def seen(count: int, seed: int, scale: float = 1.0) -> Observation:
    draws = torch.Generator().manual_seed(seed)
    values = [scale * torch.randn(count, size, generator=draws) for size in (6, 3, 16, 8)]
    return Observation(values[0], values[1], values[2], values[3])


def learned(weights_D: torch.Tensor | None = None) -> LearnedDetector:
    known = seen(200, 0)
    base = one_class(known)
    view = View.fit(known, base.score(known))
    size = len(view.standardiser.kept_D)
    return LearnedDetector(base, "one_class", view, torch.zeros(size) if weights_D is None else weights_D[:size])


def test_without_weights_the_order_is_that_of_the_older_detector() -> None:
    detector, fresh = learned(), seen(300, 1)
    assert spearmanr(detector.score(fresh), detector.base.score(fresh)).statistic == pytest.approx(1)


def test_it_is_restored_with_the_older_detector() -> None:
    detector, fresh = learned(torch.randn(33)), seen(50, 1)
    again = restore("learned", detector.arrays())
    torch.testing.assert_close(again.score(fresh), detector.score(fresh))


def test_an_array_that_is_missing_is_named() -> None:
    arrays = learned().arrays()
    for name in arrays:
        with pytest.raises(KeyError):
            restore("learned", {other: values for other, values in arrays.items() if other != name})


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_no_image_is_corrected_by_more_than_a_known_one_can_be(scale: float) -> None:
    weights_D = torch.randn(33, generator=torch.Generator().manual_seed(2))
    plain, corrected, fresh = learned(), learned(weights_D), seen(300, 1, scale)
    most = corrected.view.std * corrected.view.length * weights_D.norm()
    assert (corrected.score(fresh) - plain.score(fresh)).abs().max() <= most * 1.001


def test_the_logits_count_in_their_order_whatever_their_classes() -> None:
    detector, fresh = learned(torch.randn(33)), seen(50, 1)
    swapped = Observation(fresh.log_norms_BC, fresh.logits_BK.flip(1), fresh.features_BF, fresh.middle_BM)
    torch.testing.assert_close(detector.view.signals(fresh), detector.view.signals(swapped))
