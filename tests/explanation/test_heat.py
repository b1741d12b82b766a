"""Heat maps: the gradients they are made of, the layouts of positions, and whether their peak is in its place."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_image
from tiny import CPU, make_bundle
from torch import nn
from torch.nn import functional as F

from gradosr.classifier.training import train
from gradosr.config import OneClassSettings, TrainSettings, TransformSettings
from gradosr.detectors import Known, Observation, OneClassDetector
from gradosr.detectors.baselines.gradients import GradientSum
from gradosr.explanation.heat import SIDE, heat_maps, smoothed, spatial, weighted
from gradosr.lab.evaluation.far import make
from gradosr.scoring.compute import Compute
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


class Small(nn.Module):
    """Logits [B, 2] of images [B, 3, 32, 32]."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        sizes = (3, width, 2 * width, 2 * width, 4 * width)
        self.body = nn.Sequential()
        for place, (inputs, outputs) in enumerate(pairwise(sizes)):
            self.body.append(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False))
            self.body.extend([nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2 if place in (1, 2) else 1)])
        self.head = nn.Linear(4 * width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)))


def crops(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pieces of two photographs in turn, uint8 [N, 3, 32, 32], and of which they are."""
    photos = [torch.from_numpy(load_sample_image(f"{name}.jpg").copy()) for name in ("china", "flower")]
    draws, pieces = np.random.default_rng(seed), []
    for number in range(count):
        side = int(draws.integers(48, 97))
        top, left = (int(draws.integers(0, most - side)) for most in photos[0].shape[:2])
        piece = photos[number % 2][top : top + side, left : left + side].permute(2, 0, 1)[None].float()
        pieces.append(F.interpolate(piece, (32, 32), mode="area")[0].round().byte())
    return torch.stack(pieces), torch.arange(count) % 2


@pytest.mark.slow
def test_the_peak_lies_in_a_planted_square() -> None:
    """Squares of noise, digits and textures, in known images that they alone make unknown."""
    side, planted = 14, crops(2400, 3)[0]
    torch.manual_seed(0)
    transform = TransformSettings(resize=(32, 32), mean=(0.5,) * 3, std=(0.25,) * 3)
    classifier, recipe = Small(), TrainSettings(epochs=6, batch_size=20)
    train(classifier, *crops(600, 1), recipe, transform, torch.device("cpu"), lambda _epoch, _loss: None)
    observer = Observer(classifier, transform, OneClassSettings().signals, Compute(torch.device("cpu")))
    held_out, of_class = crops(400, 2)
    found = observer(held_out)
    detector = OneClassDetector.fit(Known(found.observation, of_class, found.head), OneClassSettings())
    scores = detector.score(found.observation)

    before = torch.cat([detector.score(observer(some).observation) for some in planted.split(100)])
    at = np.random.default_rng(4).integers(0, 33 - side, (len(planted), 2)).tolist()
    squares = torch.cat([make(kind, len(planted) // 3, (side, side), 5) for kind in ("noise", "digits", "textures")])
    for image, square, (row, column) in zip(planted, squares, at, strict=True):
        image[:, row : row + side, column : column + side] = square
    seen = Observation.joined([observer(some).observation for some in planted.split(100)], len(planted))
    turned = (before < scores.quantile(0.9)) & (detector.score(seen) > scores.quantile(0.95))
    chosen = torch.nonzero(turned).flatten()
    chosen = chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(6))[:200]]
    assert len(chosen) == 200
    hits = 0
    for place, one in zip(chosen.tolist(), heat_maps(observer, detector, planted[chosen], seen[chosen]), strict=True):
        assert one is not None
        (row, column), cell = at[place], 32 / SIDE
        y, x = (cell * (int(part) + 0.5) for part in np.unravel_index(one.values.argmax(), one.values.shape))
        hits += row <= y < row + side and column <= x < column + side
    assert hits >= 0.8 * 200
