"""A plain recipe for those who bring no classifier: SGD with Nesterov momentum, one-cycle rate (falling as a cosine).

Crop, flip, cutout, RandAugment and an exponential average of the weights are each off unless asked for.

N images, B batch, K classes.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.transforms.v2 import RandAugment

from gradosr.classifier import normalise
from gradosr.config import TrainSettings, TransformSettings
from gradosr.gradients import lay_channels_last
from gradosr.gradients.outputs import checked_logits


def train(
    classifier: nn.Module,
    images_NCHW: Tensor,
    labels_N: Tensor,
    recipe: TrainSettings,
    transform: TransformSettings,
    device: torch.device,
    observe: Callable[[int, float], None],
) -> None:
    """Train in place, and leave in eval mode. uint8 images at input size; `observe(epoch, mean loss in nats)`.

    Raises ClassifierError when what it returns in training mode is no logits.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    classifier.to(device).train()
    lay_channels_last(classifier)  # a fifth to a third faster
    optimiser = torch.optim.SGD(
        classifier.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.momentum > 0,
    )
    # The incomplete last batch is left out: BatchNorm cannot train on one image, and order is drawn anew each epoch.
    batch = min(recipe.batch_size, len(images_NCHW))
    steps = len(images_NCHW) // batch
    average = None
    if recipe.average:
        average = AveragedModel(classifier, multi_avg_fn=get_ema_multi_avg_fn(recipe.average), use_buffers=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.learning_rate, total_steps=recipe.epochs * steps, pct_start=0.2
    )
    for epoch in range(recipe.epochs):
        total = 0.0
        order_N = torch.randperm(len(images_NCHW), generator=generator)
        for rows in order_N[: steps * batch].split(batch):
            images_BCHW = normalise(augment(images_NCHW[rows], recipe, generator).to(device), transform)
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
                logits_BK = checked_logits(classifier(images_BCHW), len(rows)).float()
            loss = F.cross_entropy(logits_BK, labels_N[rows].to(device), label_smoothing=recipe.label_smoothing)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            if average is not None:
                average.update_parameters(classifier)
            total += float(loss.detach()) * len(rows)
        observe(epoch, total / (steps * batch))
    if average is not None:
        classifier.load_state_dict(average.module.state_dict())
    classifier.eval()


def augment(images_BCHW: Tensor, recipe: TrainSettings, generator: torch.Generator) -> Tensor:
    """Mirrored (`flip`: half of them), shifted by up to crop_padding pixels (zeros come in), RandAugment, cutout."""
    batch, _, height, width = images_BCHW.shape
    if recipe.flip:
        mirrored = torch.rand(batch, 1, 1, 1, generator=generator) < 0.5
        images_BCHW = torch.where(mirrored, images_BCHW.flip(3), images_BCHW)
    if pad := recipe.crop_padding:
        padded = F.pad(images_BCHW, [pad] * 4)
        top, left = torch.randint(0, 2 * pad + 1, (2, batch, 1), generator=generator)
        rows, columns = top + torch.arange(height), left + torch.arange(width)
        channels = torch.arange(images_BCHW.shape[1]).view(1, -1, 1, 1)
        samples = torch.arange(batch).view(-1, 1, 1, 1)
        images_BCHW = padded[samples, channels, rows[:, None, :, None], columns[:, None, None, :]]
    if recipe.rand_augment:
        images_BCHW = _rand_augmented(images_BCHW, recipe.rand_augment, generator)
    if side := recipe.cutout:
        # The square's centre may be anywhere, so that it is sometimes cut off at the edge (the paper's section 3.2).
        top, left = (torch.randint(0, size, (batch, 1), generator=generator) - side // 2 for size in (height, width))
        rows, columns = torch.arange(height) - top, torch.arange(width) - left
        cut_BHW = ((rows >= 0) & (rows < side))[:, :, None] & ((columns >= 0) & (columns < side))[:, None, :]
        images_BCHW = images_BCHW.masked_fill(cut_BHW[:, None], 0)
    return images_BCHW


def _rand_augmented(images_BCHW: Tensor, operations: int, generator: torch.Generator) -> Tensor:
    change = RandAugment(operations)
    with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        return torch.stack([change(image_CHW) for image_CHW in images_BCHW])
