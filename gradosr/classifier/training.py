"""A plain recipe for users without a classifier: SGD with Nesterov momentum and a one-cycle rate with cosine decay.

Crop, flip, cutout, RandAugment and an exponential average of the weights are off unless requested.

The CPU waits for a GPU once per epoch, for the loss. Images and labels lie on the GPU; random draws are made on the
CPU, so that they are the same for every device, and are copied without waiting.

N images, B batch, K classes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn

from gradosr.archive.pixel_file import Images
from gradosr.classifier.build import normalise
from gradosr.classifier.rand_augment import rand_augmented
from gradosr.config import TrainSettings, TransformSettings
from gradosr.gradients import lay_channels_last
from gradosr.gradients.outputs import checked_logits

ON_DEVICE = 4 * 2**30
"""Bytes of images up to which all of them lie on a GPU; with more, each batch is augmented on the CPU and copied."""

COPIED = 256
"""Images that are copied to a GPU at a time."""


def train(
    classifier: nn.Module,
    images_NCHW: Images,
    labels_N: Tensor,
    recipe: TrainSettings,
    transform: TransformSettings,
    device: torch.device,
    observe: Callable[[int, float], None],
    seen: Callable[[int], object] = lambda _: None,
) -> None:
    """Train a classifier in place on uint8 images at input size, and leave it in eval mode.

    `observe` is called with the epoch and its mean loss in nats, `seen` with the number of images of each batch. Raises
    ClassifierError if the classifier returns something other than logits in training mode.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    classifier.to(device).train()
    lay_channels_last(classifier)  # makes training a fifth to a third faster
    place = torch.device("cpu")
    if device.type != "cpu" and (on_device_NCHW := _on_device(images_NCHW, device)) is not None:
        images_NCHW, place = on_device_NCHW, device
    labels_N = labels_N.to(device)
    # The incomplete last batch is left out, because BatchNorm cannot train on one image; each epoch has a new order.
    batch = min(recipe.batch_size, len(images_NCHW))
    steps = len(images_NCHW) // batch
    descent = _Descent(classifier, recipe, recipe.epochs * steps, device)
    with _fastest_convolutions():
        for epoch in range(recipe.epochs):
            total = torch.zeros((), dtype=torch.float64, device=device)
            order_N = torch.randperm(len(images_NCHW), generator=generator)
            for rows in order_N[: steps * batch].split(batch):
                images_BCHW = augment(images_NCHW[_moved(rows, place)], recipe, generator)
                images_BCHW = _input(images_BCHW, transform, device)
                loss = descent.step(images_BCHW, labels_N[_moved(rows, device)])
                total += loss.double() * len(rows)
                seen(len(rows))
            observe(epoch, float(total) / (steps * batch))
    descent.finish()
    classifier.eval()


def _on_device(images_NCHW: Images, device: torch.device) -> Tensor | None:
    """Copy the images to a device; return None if they take more than ON_DEVICE bytes."""
    first_1CHW = images_NCHW[torch.zeros(1, dtype=torch.long)]
    if first_1CHW.nbytes * len(images_NCHW) > ON_DEVICE:
        return None
    copied_NCHW = first_1CHW.new_empty((len(images_NCHW), *first_1CHW.shape[1:]), device=device)
    for rows in torch.arange(len(images_NCHW)).split(COPIED):
        copied_NCHW[int(rows[0]) : int(rows[-1]) + 1] = _moved(images_NCHW[rows], device)
    return copied_NCHW


def augment(images_BCHW: Tensor, recipe: TrainSettings, generator: torch.Generator) -> Tensor:
    """Augment images on their device: flip, crop, RandAugment and cutout, as far as the recipe asks for them.

    `flip` mirrors half of the images; the crop shifts them by up to crop_padding pixels and fills in zeros. `generator`
    is on the CPU.
    """
    batch, _, height, width = images_BCHW.shape
    device = images_BCHW.device
    if recipe.flip:
        mirrored = torch.rand(batch, 1, 1, 1, generator=generator) < 0.5
        images_BCHW = torch.where(_moved(mirrored, device), images_BCHW.flip(3), images_BCHW)
    if pad := recipe.crop_padding:
        padded = F.pad(images_BCHW, [pad] * 4)
        top, left = _moved(torch.randint(0, 2 * pad + 1, (2, batch, 1), generator=generator), device)
        rows, columns = top + torch.arange(height, device=device), left + torch.arange(width, device=device)
        channels = torch.arange(images_BCHW.shape[1], device=device).view(1, -1, 1, 1)
        samples = torch.arange(batch, device=device).view(-1, 1, 1, 1)
        images_BCHW = padded[samples, channels, rows[:, None, :, None], columns[:, None, None, :]]
    if recipe.rand_augment:
        images_BCHW = rand_augmented(images_BCHW, recipe.rand_augment, generator)
    if side := recipe.cutout:
        # The square's centre may be anywhere, so that it is sometimes cut off at the edge (the paper's section 3.2).
        top, left = (
            _moved(torch.randint(0, size, (batch, 1), generator=generator) - side // 2, device)
            for size in (height, width)
        )
        rows, columns = torch.arange(height, device=device) - top, torch.arange(width, device=device) - left
        cut_BHW = ((rows >= 0) & (rows < side))[:, :, None] & ((columns >= 0) & (columns < side))[:, None, :]
        images_BCHW = images_BCHW.masked_fill(cut_BHW[:, None], 0)
    return images_BCHW


def _moved(drawn: Tensor, device: torch.device) -> Tensor:
    return drawn.to(device, non_blocking=True)


def _input(images_BCHW: Tensor, transform: TransformSettings, device: torch.device) -> Tensor:
    images_BCHW = normalise(_moved(images_BCHW, device), transform)
    # On a CPU the first layer does that; doing it here would change the results of existing seeds.
    return images_BCHW.contiguous(memory_format=torch.channels_last) if device.type == "cuda" else images_BCHW


class _Descent:
    """The optimiser of a recipe with its schedule and its average of the weights."""

    def __init__(self, classifier: nn.Module, recipe: TrainSettings, steps: int, device: torch.device) -> None:
        self._classifier, self._recipe, self._device = classifier, recipe, device
        self._optimiser = torch.optim.SGD(
            classifier.parameters(),
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.momentum > 0,
            fused=True if device.type == "cuda" else None,
        )
        warm_up = min(0.9, max(0.2, 1.5 / steps))  # of exactly one step, torch would divide by zero
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimiser, recipe.learning_rate, total_steps=steps, pct_start=warm_up
        )
        self._average = _Average(classifier, recipe.average) if recipe.average else None

    def step(self, images_BCHW: Tensor, labels_B: Tensor) -> Tensor:
        """Take one step on a batch; return its mean loss before the step, in nats, on the device."""
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._recipe.precision == "bfloat16"):
            logits_BK = checked_logits(self._classifier(images_BCHW), len(images_BCHW)).float()
        loss = F.cross_entropy(logits_BK, labels_B, label_smoothing=self._recipe.label_smoothing)
        self._optimiser.zero_grad()
        loss.backward()
        self._optimiser.step()
        self._schedule.step()
        if self._average is not None:
            self._average.update()
        return loss.detach()

    def finish(self) -> None:
        """Leave the averaged weights in the classifier, if the recipe asks for an average."""
        if self._average is not None:
            self._average.take()


class _Average:
    """An exponential average of a classifier's weights and statistics, which starts with the first step.

    torch's AveragedModel launches forty times as many kernels, because it also averages BatchNorm's counters of
    batches.
    """

    def __init__(self, classifier: nn.Module, decay: float) -> None:
        self._current = [tensor for tensor in classifier.state_dict().values() if tensor.is_floating_point()]
        self._mean: list[Tensor] = []
        self._blend = get_ema_multi_avg_fn(decay)

    def update(self) -> None:
        """Include the current weights in the average; to be called after every step."""
        if self._mean:
            self._blend(self._mean, self._current, len(self._mean))
        else:
            self._mean = [tensor.clone() for tensor in self._current]

    def take(self) -> None:
        """Copy the average into the classifier."""
        for tensor, mean in zip(self._current, self._mean, strict=True):
            tensor.copy_(mean)


@contextmanager
def _fastest_convolutions() -> Iterator[None]:
    """Let cuDNN pick the fastest algorithm by measurement, which pays because shapes repeat for thousands of steps."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
