"""Heat maps: the gradients they are made of, the layouts of positions, and whether their peak is in its place."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import ARCH, CPU, make_bundle
from torch.nn import functional as F

from gradosr.config import OneClassSettings, TrainSettings, TransformSettings
from gradosr.detectors import Known, Observation, OneClassDetector
from gradosr.detectors.baselines.gradients import GradientSum
from gradosr.explanation.heat import SIDE, heat_maps, smoothed, spatial, weighted
from gradosr.scoring.observer import Observer
from gradosr.scoring.scorer import Scorer
from gradosr.store import Store

PIXELS = (32, 32)


def test_the_map_is_that_of_plain_autograd(tmp_path: Path) -> None:
    bundle = make_bundle(Store(), str(tmp_path))
    scorer = Scorer(bundle, CPU)
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    seen, kept = scorer.observer(images).observation, []
    layer = bundle.classifier.body[3]  # of three layers the one in the middle
    hook = layer.register_forward_pre_hook(lambda _module, args: kept.append(args[0]))
    logits = bundle.classifier(scorer.observer.normalised(images).requires_grad_())
    hook.remove()
    middle = kept[0]
    features = bundle.classifier.body[4:](layer(middle))
    own = Observation(seen.log_norms_BC, logits, features, middle.mean((2, 3)))
    scorer.detector.score(own).sum().backward(inputs=[middle])
    slow = weighted(middle.grad, middle.detach())
    for one, expected in zip(heat_maps(scorer.observer, scorer.detector, images, seen), slow, strict=True):
        assert one is not None
        assert one.without == ("gradients",)
        assert one.values.shape == (SIDE, SIDE)
        likewise = smoothed(expected[None])[0]
        above = (likewise - likewise.median()).clamp_min(0)
        torch.testing.assert_close(torch.from_numpy(one.values) / 255, above / above.max(), atol=0.01, rtol=0)


def test_a_score_of_gradients_alone_is_mapped_by_what_they_are_gradients_of(tmp_path: Path) -> None:
    scorer = Scorer(make_bundle(Store(), str(tmp_path)), CPU)
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    maps = heat_maps(scorer.observer, GradientSum(), images, scorer.observer(images).observation)
    assert [(one.of, one.without) for one in maps if one] == [(("max_logit",), ("score",))] * 2


@pytest.mark.parametrize(
    ("shape", "pixels", "found"),
    [
        ((2, 5, 8, 8), PIXELS, (2, 5, 8, 8)),
        ((2, 8, 8, 5), PIXELS, (2, 5, 8, 8)),  # channels last
        ((2, 64, 5), PIXELS, (2, 5, 8, 8)),  # tokens
        ((2, 65, 5), PIXELS, (2, 5, 8, 8)),  # a class token before them
        ((2, 69, 5), PIXELS, (2, 5, 8, 8)),  # and registers
        ((2, 32, 5), (16, 32), (2, 5, 4, 8)),
        ((2, 5, 7, 14), (224, 448), (2, 5, 7, 14)),
        ((2, 5, 1, 1), PIXELS, None),
        ((2, 5), PIXELS, None),
        ((8, 16, 5), PIXELS, None),  # windows of the images
    ],
)
def test_positions_are_found(shape: tuple[int, ...], pixels: tuple[int, int], found: tuple[int, ...] | None) -> None:
    values = torch.arange(float(np.prod(shape))).reshape(shape)
    laid_out = spatial(values, 2, pixels)
    assert (None if laid_out is None else tuple(laid_out.shape)) == found
    if laid_out is not None and len(shape) == 3:
        assert torch.equal(laid_out[1, :, 0, 1], values[1, shape[1] - laid_out[0, 0].numel() + 1])


def shapes(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Blurred crosses, discs and bars on plain grounds, uint8 [N, 3, 32, 32], and which they are."""
    draws = torch.Generator().manual_seed(seed)
    kind_N = torch.arange(count) % 3
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    centre_N2 = torch.rand(count, 2, generator=draws) * 8 + 12
    dy, dx = (axis - centre_N2[:, i, None, None] for i, axis in enumerate((y, x)))
    cross = (dy.abs().minimum(dx.abs()) < 3) & (dy.abs().maximum(dx.abs()) < 10)
    inside = torch.stack([cross, dy.square() + dx.square() < 64, (dy.abs() < 4) & (dx.abs() < 11)])
    shape_N1HW = inside[kind_N, torch.arange(count)][:, None].float()
    ground, ink = (
        torch.rand(count, 3, 1, 1, generator=draws) * 0.4,
        0.6 + torch.rand(count, 3, 1, 1, generator=draws) * 0.4,
    )
    pixels = ground + (ink - ground) * shape_N1HW + 0.02 * torch.randn(count, 3, 32, 32, generator=draws)
    return (F.avg_pool2d(pixels, 3, 1, 1).clamp(0, 1) * 255).byte(), kind_N


@pytest.mark.slow
def test_the_peak_lies_in_a_planted_square() -> None:
    """A square of noise in an image of a known class; occluding it, by definition, makes the image known again."""
    from gradosr.classifier.build import build_classifier
    from gradosr.classifier.training import train
    from gradosr.gradients import Head
    from gradosr.lab.evaluation.far import noise
    from gradosr.scoring.compute import Compute

    torch.manual_seed(0)
    transform = TransformSettings(resize=(32, 32), mean=(0.5,) * 3, std=(0.25,) * 3)
    classifier = build_classifier(ARCH, {"num_classes": 3}, 3, trusted=[ARCH])
    images, labels = shapes(1200, 1)
    train(classifier, images, labels, TrainSettings(epochs=4), transform, torch.device("cpu"), print)
    observer = Observer(classifier.eval(), transform, OneClassSettings().signals, Compute(torch.device("cpu")))
    held_out, of_class = shapes(600, 2)
    found = observer(held_out)
    assert isinstance(found.head, Head)
    detector = OneClassDetector.fit(Known(found.observation, of_class, found.head), OneClassSettings())
    threshold = detector.score(found.observation).quantile(0.95)

    planted, _ = shapes(600, 3)
    at = torch.randint(0, 32 - 11, (600, 2), generator=torch.Generator().manual_seed(4)).tolist()
    for image, square, (row, column) in zip(
        planted, noise(600, (12, 12), torch.Generator().manual_seed(5)), at, strict=True
    ):
        image[:, row : row + 12, column : column + 12] = square
    seen = observer(planted).observation
    unknown = torch.nonzero(detector.score(seen) > threshold).flatten()[:200]
    assert len(unknown) == 200
    hits = 0
    for place, one in zip(
        unknown.tolist(), heat_maps(observer, detector, planted[unknown], seen[unknown]), strict=True
    ):
        assert one is not None
        (row, column), cell = at[place], 32 // SIDE
        y, x = (cell * (int(part) + 0.5) for part in np.unravel_index(one.values.argmax(), one.values.shape))
        hits += row <= y < row + 12 and column <= x < column + 12
    assert hits >= 0.8 * 200, hits
