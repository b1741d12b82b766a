"""Loading of weights, as training frameworks write them, into a classifier. No code in a file is run."""

import argparse
import copy
import io
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeGuard

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from gradosr.errors import ClassifierError, MachineFault, machine_fault
from gradosr.store import Store

ENTRIES = ("state_dict_ema", "model_ema", "ema", "state_dict", "model_state_dict", "model")
"""Entries of checkpoints that hold weights; averaged ones come first, as training scripts report their accuracy."""
PREFIXES = ("module.", "_orig_mod.", "model.")
"""Prefixes added by wrappers: DistributedDataParallel and AveragedModel, torch.compile, Lightning."""
WRAPPERS = PREFIXES[:2]
"""Prefixes that a classifier's own names can have, because its factory returns it wrapped."""
AVERAGED = "n_averaged"
"""AveragedModel's step counter, which stands beside the names that it prefixes."""


class _Aside:
    """An object beside the weights, such as a best accuracy, of which nothing is read."""

    def __init__(self, *_args: object) -> None:
        pass

    def __setstate__(self, _state: object) -> None:
        pass


NUMPY = (
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.dtypes.{kind}DType" for kind in ("Bool", "Int32", "Int64", "Float16", "Float32", "Float64")),
)
"""Names by which files call numpy's scalars and arrays, in every version of numpy; none of them is looked up."""

_CLASS = re.compile(r"GLOBAL (\S+)")
_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")  # published names, renamed by torchvision's loader


class Weights(NamedTuple):
    """Tensors by name, and where they come from."""

    tensors: dict[str, Tensor]
    source: str
    """URI, and the entry of the checkpoint that was used, if it has entries."""


class _Variant(NamedTuple):
    prefix: str
    """Prefix that was removed from the names."""
    tensors: Mapping[str, Tensor]


def read_weights(store: Store, uri: str, entry: str | None = None) -> Weights:
    """Read weights from a .safetensors file, or from a torch checkpoint of plain tensors.

    A checkpoint holds them at top level, or in one of ENTRIES (or in `entry`). Raises ClassifierError for a file that
    is damaged, holds objects, or has no weights, MachineFault where this machine lacks memory for it.
    """
    body = store.read(uri)
    if body.startswith(b"version https://git-lfs"):
        raise ClassifierError(f"{uri}: a pointer of Git LFS instead of the weights; `git lfs pull` fetches them")
    try:
        if uri.endswith(".safetensors"):
            return _picked(unpacked(body), uri, entry)
        # Training scripts leave their command lines in checkpoints, names and plain values, and figures of numpy's.
        with torch.serialization.safe_globals([argparse.Namespace, *((_Aside, name) for name in NUMPY)]):
            state = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except safetensors.SafetensorError as error:
        raise ClassifierError(f"{uri}: not a safetensors file: {error}") from error
    except ClassifierError:
        raise
    except Exception as error:  # a damaged or hostile file can make torch.load raise anything
        if fault := machine_fault(error):
            raise MachineFault(f"{uri}: {fault}") from error
        # torch's own message is not passed on: it advises to let the file run its code.
        named = _CLASS.search(str(error))
        found = f"holds objects ({named[1]}), which run code" if named else "damaged, or not a checkpoint"
        raise ClassifierError(f"{uri}: {found}; save plain tensors by torch.save(net.state_dict(), ...)") from error
    return _picked(state, uri, entry)


def unpacked(body: bytes) -> dict[str, Tensor]:
    """Read tensors from safetensors. Raises SafetensorError for other content, MachineFault for lack of memory."""
    try:
        bytearray(
            len(body)
        )  # what safetensors takes; where there is no room for it, its own code may abort the process
        return safetensors.torch.load(body)
    except BaseException as error:  # a panic of Rust is no Exception
        if fault := machine_fault(error):
            raise fault from error
        raise


def _picked(state: Any, uri: str, entry: str | None) -> Weights:
    if entry is None and _are_weights(state):
        return Weights(state, uri)
    entries = [name for name, value in state.items() if _are_weights(value)] if isinstance(state, dict) else []
    held = [name for name in (ENTRIES if entry is None else (entry,)) if name in entries]
    if not held:
        wanted = "a mapping of names to tensors (a state_dict)" if entry is None else f"weights in {entry}"
        found = f"them in {', '.join(map(str, entries))}" if entries else "none"
        raise ClassifierError(f"{uri}: expected {wanted}, found {found}; classifier.weights_entry picks an entry")
    return Weights(state[held[0]], f"{uri} ({held[0]})")


def _are_weights(state: Any) -> TypeGuard[dict[str, Tensor]]:
    return (
        isinstance(state, dict)
        and bool(state)
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items())
    )


def load_weights(
    classifier: nn.Module,
    weights: Mapping[str, Tensor],
    source: str,
    classes: int | None = None,
    own_names: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] | None = None,
) -> str:
    """Copy `weights` into a classifier; return the prefix that had to be removed from their names, usually none.

    `own_names` translates names that do not fit otherwise. Raises ClassifierError, and changes nothing, if names or
    shapes differ (with the first names of each fault) or if the weights do not have `classes` classes.
    """
    own = classifier.state_dict()
    variants = list(_variants("", weights))
    if wrapped := _wrapped(own):
        variants += [_Variant("", {wrapped + name: tensor for name, tensor in one.tensors.items()}) for one in variants]
    if all(any(_misfits(own, variant.tensors)) for variant in variants):
        ways = [way for way in (own_names, partial(_renamed, classifier)) if way is not None]
        variants += [_Variant(one.prefix, way(one.tensors)) for way in ways for one in variants]
    prefix, fitting = min(variants, key=lambda variant: _misfits(own, variant.tensors))  # the first if equal
    missing = [name for name in own if name not in fitting and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in fitting if name not in own]
    misshapen = [name for name in own if name in fitting and fitting[name].shape != own[name].shape]
    if misshapen and not missing and not unexpected:
        _check_classes({(fitting[name].shape, own[name].shape) for name in misshapen}, source, classes)
    shapes = [f"{name} {tuple(fitting[name].shape)} instead of {tuple(own[name].shape)}" for name in misshapen]
    faults = [
        f"{len(names)} {what}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if faults:
        without = f" without their prefix {prefix}" if prefix else ""
        raise ClassifierError(f"{source}: weights{without} do not fit the architecture: {'; '.join(faults)}")
    own.update(fitting)  # it states the version of its modules, without which MNASNet's loader raises
    classifier.load_state_dict(own, strict=False)
    return prefix


def _variants(prefix: str, weights: Mapping[str, Tensor]) -> Iterator[_Variant]:
    """Yield the weights, and then the weights without each prefix that some of their names have, in turn."""
    yield _Variant(prefix, weights)
    for one in PREFIXES:
        if any(name.startswith(one) for name in weights):
            kept = {name: tensor for name, tensor in weights.items() if name != AVERAGED or one != "module."}
            bare = {name.removeprefix(one): tensor for name, tensor in kept.items()}
            if len(bare) == len(kept):  # otherwise two tensors would have the same name
                yield from _variants(prefix + one, bare)


def _wrapped(own: Mapping[str, Tensor]) -> str:
    """Return the prefix that torch.compile and DataParallel give to all names of a classifier; empty if unwrapped."""
    prefix = ""
    while own and (more := next((one for one in WRAPPERS if all(name.startswith(prefix + one) for name in own)), "")):
        prefix += more
    return prefix


def _renamed(classifier: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights as the classifier's own modules do when they load files of older versions.

    Weights that do not fit are kept under their names.
    """
    weights = {_DENSENET.sub(r"\1\2.", name): tensor for name, tensor in weights.items()}
    twin = copy.deepcopy(classifier)
    try:
        told = twin.load_state_dict(weights, strict=False)
    except Exception as error:  # of another shape, which is told by the caller; or whatever a module's loader raises
        if fault := machine_fault(error):
            raise fault from error
        return weights
    return {
        **{name: tensor for name, tensor in twin.state_dict().items() if name not in told.missing_keys},
        **{name: weights[name] for name in told.unexpected_keys if name in weights},
    }


def _misfits(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> tuple[int, int]:
    """Count the names that only one side has, and the tensors of another shape."""
    strangers = {name for name in own.keys() ^ weights.keys() if not name.endswith("num_batches_tracked")}
    return len(strangers), sum(own[name].shape != weights[name].shape for name in own.keys() & weights.keys())


def _check_classes(shapes: set[tuple[torch.Size, torch.Size]], source: str, classes: int | None) -> None:
    """Raise ClassifierError if only the number of rows in the last layer differs."""
    rows = {(found[:1], wanted[:1]) for found, wanted in shapes}
    if len(rows) == 1 and all(len(found) and found[1:] == wanted[1:] for found, wanted in shapes):
        ((found, wanted),) = rows
        if wanted == (classes,):
            raise ClassifierError(
                f"{source}: the weights have {found[0]} classes, `classes` names {classes}; "
                "name those of the weights, in logit order"
            )
