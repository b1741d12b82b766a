"""Resolution of a classifier: settings missing in the config are read from its source; then it is built and loaded."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gradosr.archive.image import resolve_names
from gradosr.classifier.architectures import LIBRARIES, timm, transformers
from gradosr.classifier.architectures.stated import Stated, unstated
from gradosr.classifier.build import build_classifier
from gradosr.classifier.hugging_face import ModelFolder, read_folder
from gradosr.classifier.sources import WEIGHTS
from gradosr.classifier.weights import load_weights, read_weights
from gradosr.config import CompleteFitJob, FitJob, NetworkSettings
from gradosr.errors import ConfigError
from gradosr.store import Store, join

NetworkT = TypeVar("NetworkT", bound=NetworkSettings)


def complete(job: FitJob, store: Store, say: Callable[[str], object]) -> CompleteFitJob:
    """Complete a fit job: name its classes, state its transform, and resolve a folder given by `hf:`.

    Raises ConfigError, or ClassifierError for the folder.
    """
    folder = read_folder(store, job.classifier.folder) if job.classifier.folder is not None else None
    settings = job.classifier.model_copy(update={"classes": class_names(job, store, folder)})
    settings = stated_in_full(settings, folder, say)
    said = {name: getattr(job, name) for name in type(job).model_fields}
    return CompleteFitJob.model_validate({**said, "classifier": settings.model_dump()})


def stated_in_full(
    settings: NetworkT, folder: ModelFolder | None, say: Callable[[str], object] = lambda _: None
) -> NetworkT:
    """State the transform of a network and the arguments that its library adds, and resolve the folder of `hf:`.

    Raises ConfigError.
    """
    found: dict[str, Any] = {}
    if folder is not None:
        found |= {"arch": folder.arch, "args": {**folder.args, **settings.args}}
        found |= {"weights": settings.weights or join(folder.uri, WEIGHTS)}
    if settings.transform is None:
        transform, origin = folder.transform() if folder is not None else _stated(settings)
        say(f"transform, as {origin} has it: {transform}")
        found |= {"transform": transform}
    settings = settings.model_copy(update=found)
    return settings.model_copy(update={"args": {**_loading_args(settings, say), **settings.args}})


def _stated(settings: NetworkSettings) -> Stated:
    source, _, name = settings.arch.partition(":")
    if source not in LIBRARIES:
        raise unstated(f"{settings.arch} cannot say what images its weights were made for")
    return LIBRARIES[source].transform(name, settings.args)


def _loading_args(settings: NetworkSettings, say: Callable[[str], object]) -> Mapping[str, Any]:
    """Return the arguments that the library adds when it loads weights, without those that the config states."""
    source, _, name = settings.arch.partition(":")
    if settings.weights is None or settings.transform is None or source not in LIBRARIES:
        return {}
    added = LIBRARIES[source].arguments(name, settings.transform)
    added = {key: value for key, value in added.items() if key not in settings.args}
    for key, value in added.items():
        say(f"args.{key}: {value}, as {source} builds {name} for its own weights; give it if yours want another")
    return added


def class_names(job: FitJob, store: Store, folder: ModelFolder | None = None) -> tuple[str, ...]:
    """Return the classes in logit order. Raises ConfigError if none are named or `known` has others."""
    classes = resolve_names(job.classifier.classes, store) or (folder and folder.classes) or job.known
    if len(classes) < 2 or len(set(classes)) != len(classes):
        few = job.input.kind == "images" and folder is None and len(classes) < 2
        why = f"; {job.input.uri} has no two folders of classes, by which images are labelled" if few else ""
        raise ConfigError(f"classifier.classes or known: name at least two classes, each once, in logit order{why}")
    if other := [name for name in job.known if name not in classes]:
        raise ConfigError(f"known: {', '.join(other)} not among the classifier's classes ({', '.join(classes)})")
    return classes


def build(job: CompleteFitJob, args: Mapping[str, Any], classes: int) -> nn.Module:
    """Build the classifier with fresh weights, drawn by the job's seed."""
    # The fit config itself names the architecture, and so trusts it.
    with torch.random.fork_rng():
        torch.manual_seed(job.train.seed if job.train else job.seed)
        arch, logits = job.classifier.arch, job.classifier.logits
        return build_classifier(arch, args, classes, trusted=(arch,), logits=logits)


def bring(job: CompleteFitJob, store: Store, say: Callable[[str], object]) -> nn.Module:
    """Build the classifier and load its weights, if it has any. Raises ConfigError, ClassifierError or StoreError."""
    settings = job.classifier
    classifier = build(job, settings.args, len(settings.classes))
    if settings.weights is not None:
        tensors, source = read_weights(store, settings.weights, settings.weights_entry)
        names = renaming(settings.arch, settings.args, classifier, len(settings.classes))
        prefix = load_weights(classifier, tensors, source, len(settings.classes), names)
        if prefix or source != settings.weights:
            say(f"weights: {source}{f', without the prefix {prefix} of their names' if prefix else ''}")
    return classifier


def renaming(
    arch: str, args: Mapping[str, Any], classifier: nn.Module, classes: int
) -> Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] | None:
    """Return the function by which an architecture's library renames weights of older versions, if it has one."""
    library, _, name = arch.partition(":")
    if library == "transformers":
        return partial(transformers.own_names, classifier)
    return partial(timm.own_names, name, args, classes) if library == "timm" else None
