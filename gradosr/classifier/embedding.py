"""A second network, of which features are wanted: what its last layer gets, or the output of a factory of one's own.

B images, F features.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from gradosr.classifier.build import build_classifier
from gradosr.classifier.hugging_face import read_folder
from gradosr.classifier.resolve import renaming, stated_in_full
from gradosr.classifier.weights import PREFIXES, load_weights, read_weights
from gradosr.config import EmbedderSettings, TransformSettings
from gradosr.errors import ClassifierError, ConfigError
from gradosr.gradients.weights import check_finite
from gradosr.store import Store

GUESSED = 1000
"""Number of classes of which a network is built at first, as most published ones have."""


class Embedding(NamedTuple):
    """A network with its weights, on the CPU and in eval mode, and the features that are wanted of it."""

    network: nn.Module
    transform: TransformSettings
    headless: bool
    """True if its output is the features; False if they are the input of the linear layer that makes its output."""


def bring_embedder(settings: EmbedderSettings, store: Store, trust: tuple[str, ...]) -> Embedding:
    """Build the network of an embedder and load its weights. Raises ConfigError, ClassifierError or StoreError."""
    with in_its_words():
        folder = None if settings.folder is None else read_folder(store, settings.folder)
        settings = stated_in_full(settings, folder)
        if settings.transform is None:
            raise ConfigError("classifier.transform: required")  # stated_in_full has one, or raises
        network, headless = _loaded(settings, store, trust)
        check_finite(network)
        return Embedding(network, settings.transform, headless)


@contextmanager
def in_its_words() -> Iterator[None]:
    """Say of which network of the config an error is; what builds and loads it says `classifier` of any."""
    try:
        yield
    except (ConfigError, ClassifierError) as error:
        if str(error).startswith("embedder"):
            raise
        raise type(error)(f"embedder: {str(error).replace('classifier.', 'embedder.')}") from error


def _loaded(settings: EmbedderSettings, store: Store, trust: tuple[str, ...]) -> tuple[nn.Module, bool]:
    """Return the network with its weights, and whether it has no last layer."""
    arch, args = settings.arch, settings.args
    classes: int = args.get("num_classes", GUESSED)
    network = build_classifier(arch, args, classes, trust)
    if settings.weights is None:
        return network, settings.own_code
    tensors, source = read_weights(store, settings.weights, settings.weights_entry)
    if not settings.own_code and "num_classes" not in args and (held := _classes_in(tensors, network)) != classes:
        classes = held
        network = build_classifier(arch, args, classes, trust)
    names = renaming(arch, args, network, classes)
    try:
        load_weights(network, tensors, source, own_names=names)
    except ClassifierError as error:
        hint = "" if settings.own_code else f" (built with args.num_classes: {classes})"
        raise ClassifierError(f"{error}{hint}") from error
    return network, settings.own_code or classes == 0


def _classes_in(tensors: Mapping[str, Tensor], network: nn.Module) -> int:
    """Return the number of classes that weights are of; 0 if they lack the last layer of a network of GUESSED ones."""
    last = [name for name, own in network.state_dict().items() if own.ndim and len(own) == GUESSED]
    held = [tensors[prefix + name] for name in last for prefix in ("", *PREFIXES) if prefix + name in tensors]
    return len(held[-1]) if held and held[-1].ndim else 0


class LastLayer:
    """The input of the linear layer that makes a network's output, as noted on the way."""

    def __init__(self, network: nn.Module) -> None:
        """Watch the network from now on."""
        self._seen: tuple[Tensor, Tensor] | None = None
        for module in network.modules():
            if isinstance(module, nn.Linear):
                module.register_forward_hook(self._note)

    def _note(self, _layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self._seen = (args[0], output) if args else None

    def features(self, output: Tensor) -> Tensor | None:
        """Return what the last linear layer got to make this output; None if no linear layer made it."""
        seen, self._seen = self._seen, None
        made = seen is not None and seen[1].data_ptr() == output.data_ptr() and seen[1].numel() == output.numel()
        return seen[0] if seen is not None and made else None
