"""The recipe for those who bring no classifier."""

import warnings

import pytest
import torch
from torch import nn
from torchvision.transforms.v2 import InterpolationMode, RandAugment

from gradosr.classifier import training
from gradosr.classifier.rand_augment import OPERATIONS, rand_augmented
from gradosr.classifier.training import augment, train
from gradosr.config import TrainSettings, TransformSettings

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


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_on_many_images_is_torchvisions_on_each(name: str) -> None:
    """Blends may round the other way."""
    waves = torch.sin(torch.arange(20)[:, None] / 3 + torch.arange(26) / 5 + torch.arange(6).view(-1, 1, 1, 1))
    pixels = (
        waves * 90 + 120 + torch.randint(0, 40, (6, 3, 20, 26), generator=torch.Generator().manual_seed(0))
    ).byte()
    pixels[0], pixels[1, 0] = 9, 200
    slow = RandAugment()
    magnitudes, signed = slow._AUGMENTATION_SPACE[name]
    level = magnitudes(slow.num_magnitude_bins, 20, 26)
    sign = torch.tensor([1.0, -1.0, 1.0, -1.0, -1.0, 1.0])
    found = OPERATIONS[name](pixels, sign.view(-1, 1, 1, 1))
    assert (found.shape, found.dtype) == (pixels.shape, torch.uint8)
    for one, image, s in zip(found, pixels, sign.tolist(), strict=True):
        magnitude = 0.0 if level is None else float(level[slow.magnitude]) * (s if signed else 1)
        expected = slow._apply_image_or_video_transform(
            image, name, magnitude, interpolation=InterpolationMode.NEAREST, fill=slow._fill
        )
        difference = (one.int() - expected.int()).abs()
        assert difference.max() <= 1
        assert (difference > 0).float().mean() < 0.03
    assert name == "Identity" or not torch.equal(found, pixels)


def test_every_image_draws_its_own_operation_and_stays_in_its_place() -> None:
    pixels = torch.randint(40, 200, (2800, 3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = rand_augmented(pixels, 1, torch.Generator().manual_seed(3))
    made = [
        operation(pixels, torch.full((2800, 1, 1, 1), sign))
        for operation in OPERATIONS.values()
        for sign in (1.0, -1.0)
    ]
    # a mean over a batch of another size may round the other way
    same = torch.stack([(one == found).flatten(1).float().mean(1) > 0.9 for one in made]).view(14, 2, -1).any(1)
    assert (same.sum(0) == 1).all()
    assert ((same.float().mean(1) - 1 / 14).abs() < 0.02).all()
    assert torch.equal(rand_augmented(pixels, 0, torch.Generator()), pixels)


def test_images_that_do_not_fit_a_device_give_the_same_network(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"flip": True, "crop_padding": 1, "cutout": 3, "rand_augment": 1}
    expected = trained(**changes)[1].weight
    monkeypatch.setattr(training, "ON_DEVICE", 0)
    assert torch.equal(trained(**changes)[1].weight, expected)


@pytest.mark.parametrize("steps", range(1, 9))
def test_a_recipe_of_few_steps_trains(steps: int) -> None:
    """Five steps made torch's schedule divide by zero."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    before, recipe = net[1].weight.detach().clone(), TrainSettings(epochs=1, batch_size=2)
    labels = torch.arange(2 * steps) % 2
    train(net, images(2 * steps), labels, recipe, TRANSFORM, torch.device("cpu"), lambda epoch, loss: None)
    assert torch.isfinite(net[1].weight).all()
    assert not torch.equal(net[1].weight, before)


def test_the_mean_loss_of_an_epoch_is_that_of_its_images() -> None:
    net, losses = nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), []
    recipe = TrainSettings(epochs=1, batch_size=15, learning_rate=1e-12, momentum=0)
    pixels, labels = images(30), torch.arange(30) % 2
    train(net, pixels, labels, recipe, TRANSFORM, torch.device("cpu"), lambda epoch, loss: losses.append((epoch, loss)))
    expected = nn.functional.cross_entropy(net((pixels / 255 - 0.5) / 0.25), labels).item()
    assert losses == [(0, pytest.approx(expected, rel=1e-5))]


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


def test_the_average_is_of_statistics_too_and_not_of_counters() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3, momentum=0.5), nn.Flatten(), nn.Linear(192, 2))
    recipe = TrainSettings(epochs=3, batch_size=10, average=0.5)
    seen: list[torch.Tensor] = []
    net[0].register_forward_hook(lambda module, *_: seen.append(module.running_mean.clone()))
    train(net, images(40), torch.arange(40) % 2, recipe, TRANSFORM, torch.device("cpu"), lambda epoch, loss: None)
    expected = seen[0]
    for statistics in seen[1:]:
        expected = (expected + statistics) / 2
    torch.testing.assert_close(net[0].running_mean, expected)
    assert net[0].num_batches_tracked == 12


EVERYTHING = {"flip": True, "crop_padding": 2, "cutout": 3, "rand_augment": 2, "average": 0.5, "learning_rate": 0.01}


def small_net() -> nn.Module:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 1))
    return nn.Sequential(body, nn.Flatten(), nn.Linear(8 * 36, 2))


def losses_on(device: str, **changes: object) -> list[float]:
    losses: list[float] = []
    recipe = TrainSettings.model_validate(EVERYTHING | {"batch_size": 64, "epochs": 2} | changes)
    pixels, labels = images(640), torch.arange(640) % 2
    train(small_net(), pixels, labels, recipe, TRANSFORM, torch.device(device), lambda _, loss: losses.append(loss))
    return losses


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_sees_the_images_that_a_cpu_sees() -> None:
    assert losses_on("cuda") == pytest.approx(losses_on("cpu"), rel=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_gpu_is_waited_for_once_an_epoch(precision: str) -> None:
    def waits(epochs: int) -> int:
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                losses_on("cuda", epochs=epochs, precision=precision)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(one.message) for one in caught)

    waits(1)  # the first time, constants are uploaded
    assert waits(4) - waits(1) == 3
