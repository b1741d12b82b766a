"""The recipe for those who bring no classifier."""

import pytest
import torch
from torch import nn

from gradosr.config import TrainSettings, TransformSettings
from gradosr.training import augment, train

TRANSFORM = TransformSettings(crop=8, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def trained(**changes: object) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    pixels, labels = images(40), torch.arange(40) % 2
    recipe = TrainSettings.model_validate({"epochs": 2, "batch_size": 10, "learning_rate": 0.01} | changes)
    train(net, pixels, labels, recipe, TRANSFORM, torch.device("cpu"), lambda epoch, loss: None)
    return net


@pytest.mark.parametrize("changes", [{"flip": True}, {"crop_padding": 2}, {"cutout": 3}, {"rand_augment": 2}])
def test_augmented_images_differ_by_draw_and_leave_the_global_generator_alone(changes: dict[str, object]) -> None:
    recipe, pixels = TrainSettings.model_validate(changes), images(30)
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    once, again, other = (augment(pixels, recipe, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected)
    assert (once.shape, once.dtype) == (pixels.shape, torch.uint8)
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert any(not torch.equal(a, b) for a, b in zip(once, pixels, strict=True))
    assert torch.equal(augment(pixels, TrainSettings(), torch.Generator()), pixels)


def test_cutout_blanks_a_square_that_may_reach_beyond_the_image() -> None:
    pixels = torch.full((500, 3, 6, 9), 255, dtype=torch.uint8)
    found = augment(pixels, TrainSettings(cutout=4), torch.Generator().manual_seed(0))
    blank = found == 0
    assert torch.equal(blank[:, :1].expand_as(blank), blank)
    sizes = {(int(one.any(1).sum()), int(one.any(0).sum()), int(one.sum())) for one in blank[:, 0]}
    assert sizes == {(high, wide, high * wide) for high in (2, 3, 4) for wide in (2, 3, 4)}
    assert found.unique().tolist() == [0, 255]


def test_bfloat16_is_what_is_computed_in_and_not_what_is_kept() -> None:
    exact, rounded = trained()[1].weight, trained(precision="bfloat16")[1].weight
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, atol=0.05, rtol=0.1)


def test_the_average_is_that_of_the_weights_after_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[torch.Tensor] = []
    step = torch.optim.SGD.step

    def noted(self: torch.optim.SGD, *args: object, **options: object) -> object:
        done = step(self, *args, **options)
        steps.append(self.param_groups[0]["params"][0].detach().clone())
        return done

    monkeypatch.setattr(torch.optim.SGD, "step", noted)
    found = trained(average=0.9)[1].weight
    expected = steps[0]
    for weights in steps[1:]:
        expected = 0.9 * expected + 0.1 * weights
    torch.testing.assert_close(found, expected)
    assert not torch.equal(found, steps[-1])
    steps.clear()
    assert torch.equal(trained()[1].weight, steps[-1])
