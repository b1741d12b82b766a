"""The cost of scoring an archive: what each detector needs of a classifier, measured beside a plain forward pass."""

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gradosr.classifier.build import build_classifier
from gradosr.config import (
    BaselineSettings,
    ComputeSettings,
    DeviceName,
    OneClassSettings,
    Signals,
    TransferSettings,
    TransformSettings,
)
from gradosr.scoring.compute import choose_compute
from gradosr.scoring.observer import Observer

FORWARD = "forward pass"
SIGNALS = {
    FORWARD: Signals(),
    "energy": BaselineSettings(kind="energy").signals,
    "one_class (default)": OneClassSettings().signals,
    "transfer (the paper's)": TransferSettings().signals,
}
"""Signals of the detectors to compare; the detectors' own arithmetic takes no time beside them."""
IMAGES = 100_000_000
"""Size of the archive whose cost is told."""
CLASSES = 1000


class Network(NamedTuple):
    """A classifier to measure."""

    arch: str
    size: int
    """Height and width of its images in pixels."""
    batch: int
    """Images per batch."""


NETWORKS = (
    Network("torchvision:resnet18", 32, 64),
    Network("torchvision:resnet50", 224, 32),
    Network("torchvision:efficientnet_b0", 224, 32),
    Network("timm:efficientnet_lite0", 224, 32),
    Network("torchvision:vit_b_16", 224, 32),
)


def bench_cost(
    networks: Sequence[Network], runs: int, device: DeviceName, say: Callable[[str], None]
) -> dict[str, Any]:
    """Return images per second of each detector on each network, and the time of each in forward passes.

    Both are medians over `runs` rounds, each of which runs every detector once. Raise ConfigError for an unknown
    architecture or device.
    """
    compute = choose_compute(ComputeSettings(device=device))
    compute.prepare()
    rows = []
    for network in networks:
        say(f"{network.arch}, {network.size} pixels, batch {network.batch}")
        rows.append({**network._asdict(), **_measured(network, runs, device)})
    return {"device": compute.name, "torch": torch.__version__, "runs": runs, "networks": rows}


def _measured(network: Network, runs: int, device: DeviceName) -> dict[str, Any]:
    torch.manual_seed(0)
    classifier = build_classifier(network.arch, {}, CLASSES)
    images_BCHW = torch.randint(0, 256, (network.batch, 3, network.size, network.size), dtype=torch.uint8)
    contenders = {name: _ready(classifier, signals, images_BCHW, device) for name, signals in SIGNALS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(runs):
        for name, observe in contenders.items():
            start = time.perf_counter()
            observe()
            seconds[name].append(time.perf_counter() - start)
    return {
        "images_per_second": {name: network.batch / statistics.median(times) for name, times in seconds.items()},
        "forward_passes": {
            name: statistics.median(mine / one for mine, one in zip(times, seconds[FORWARD], strict=True))
            for name, times in seconds.items()
        },
    }


def _ready(classifier: nn.Module, signals: Signals, images_BCHW: Tensor, device: DeviceName) -> Callable[[], Tensor]:
    """Return a function that observes the images and waits for the result, after its first run."""
    transform = TransformSettings(crop=(images_BCHW.shape[2], images_BCHW.shape[3]))
    observer = Observer(copy.deepcopy(classifier), transform, signals, choose_compute(ComputeSettings(device=device)))

    def observe() -> Tensor:
        return observer(images_BCHW).observation.logits_BK.cpu()

    for _ in range(2):  # a GPU records the second run, to replay it
        observe()
    return observe


def cost_table(facts: dict[str, Any], price: float | None) -> str:
    """Format one row per network and detector, in Markdown; `price` is what an hour of the device costs."""
    head = ["network", "detector", "forward passes", "images/s", "hours per 100 million images"]
    head += [] if price is None else ["price of them"]
    lines = [f"On {facts['device']}, torch {facts['torch']}, float32; medians of {facts['runs']} paired runs.", ""]
    lines += [f"| {' | '.join(head)} |", "|---|---|" + "---:|" * (len(head) - 2)]
    for row in facts["networks"]:
        name = f"{row['arch'].partition(':')[2]}, {row['size']} pixels, batch {row['batch']}"
        for detector, rate in row["images_per_second"].items():
            hours = IMAGES / rate / 3600
            cells = [name, detector, f"{row['forward_passes'][detector]:.2f}", f"{rate:,.1f}", f"{hours:,.0f}"]
            cells += [] if price is None else [f"{hours * price:,.0f}"]
            lines.append(f"| {' | '.join(cells)} |")
            name = ""
    return "\n".join(lines)
