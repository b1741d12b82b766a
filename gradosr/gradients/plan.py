"""Which rule serves which parameter, found once per input shape by probing, and verified against autograd.

A call's tensors may hold the batch anywhere: [B, ...], [T, B, ...] inside attention, [B * windows, ...].
Where it is, is measured: one image of a probe batch is exchanged, and the positions that change are
that image's. Then every norm is compared with autograd on a batch of one, in float64 where the
classifier runs in it; a parameter whose rule does not reproduce autograd goes to the exact fallback.
"""

import copy
import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradosr.errors import ClassifierError
from gradosr.gradients.calls import Gradients, squared_norm
from gradosr.gradients.capture import Capture, Record, only_requiring_grad
from gradosr.gradients.objectives import OBJECTIVES
from gradosr.gradients.rules import RULES

PROBES = 3
EXCHANGED = 1  # the middle image: both neighbours must stay as they are


@dataclass(frozen=True)
class Use:
    """One ruled call that serves parameters."""

    before: int
    """Positions of the output that lie before the batch: 1 for [B, ...], T for [T, B, ...]."""
    names: Mapping[str, str]
    """Role -> parameter name."""


@dataclass(frozen=True)
class Plan:
    """How every parameter of a classifier gets its norm, for one input shape."""

    uses: Mapping[int, Use]
    """By number of the ruled call."""
    fallback: tuple[str, ...]
    """Parameters without a rule that reproduces autograd: per-sample gradients by batches of one."""
    unused: tuple[str, ...]
    """Parameters that no gradient reaches: zero."""
    penultimate: int | None
    """Number of the linear call that makes the logits; its input is the features."""
    calls: int
    """Ruled calls of one forward pass."""

    @cached_property
    def shared(self) -> frozenset[str]:
        """Parameters that several calls use: their gradients add before the norm."""
        seen = Counter(name for use in self.uses.values() for name in use.names.values())
        return frozenset(name for name, calls in seen.items() if calls > 1)


def make_plan(classifier: nn.Module, images_BCHW: Tensor) -> Plan:
    """Plan for images of this shape, type and device. Raises ClassifierError when the classifier cannot serve."""
    probe = torch.randn(PROBES, *images_BCHW.shape[1:], generator=torch.Generator().manual_seed(0))
    probe = probe.to(images_BCHW.device, images_BCHW.dtype)
    check_mode(classifier)
    try:
        return _plan(_precise_copy(classifier), probe.double(), tolerance=1e-6, floor=1e-12)
    except ClassifierError:
        raise
    except (RuntimeError, TypeError, NotImplementedError):  # casts of its own, or operators without float64
        return _plan(classifier, probe, tolerance=1e-2, floor=1e-6)


def _precise_copy(classifier: nn.Module) -> nn.Module:
    """In float64, every parameter moved a little.

    Where gradients vanish (a head or a residual scale that starts at zero, a dead activation) nothing
    could be measured or verified.
    """
    precise = copy.deepcopy(classifier).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in precise.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.01 * noise.to(parameter.device))
    return precise


def check_mode(classifier: nn.Module) -> None:
    """Raise ClassifierError for a classifier in training mode."""
    training = [name or "the classifier itself" for name, module in classifier.named_modules() if module.training]
    if training:
        raise ClassifierError(f"{training[0]} is in training mode; call .eval() on the classifier first")


def forward(classifier: nn.Module, images_BCHW: Tensor) -> Tensor:
    """Logits [B, K], from a copy of the images: the classifier may work on its input in place.

    Raises ClassifierError when the output is anything else.
    """
    logits = classifier(images_BCHW.clone())
    if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[0] != images_BCHW.shape[0]:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ClassifierError(
            f"the classifier returns {found} for {images_BCHW.shape[0]} images; expected logits [batch, classes]"
        )
    return logits


def _plan(classifier: nn.Module, probe: Tensor, tolerance: float, floor: float) -> Plan:
    with only_requiring_grad(classifier):
        with Capture() as capture:
            logits = forward(classifier, probe.requires_grad_())
        layouts, penultimate = _layouts(classifier, probe, capture, logits), _penultimate(capture, logits)
        names = {id(parameter): name for name, parameter in classifier.named_parameters()}
        uses = {
            number: Use(before, roles)
            for number, before in layouts.items()
            if (roles := named(capture.records[number], names))
        }
        plan = Plan(uses, (), (), penultimate, capture.count)
        norms = norms_of_records(plan, capture.records, logits, OBJECTIVES["all_hot"](logits).sum(), PROBES)
    reference = _autograd_norms(classifier, probe.detach()[EXCHANGED : EXCHANGED + 1])
    unused = tuple(name for name, expected in reference.items() if expected is None)
    used = {name: expected for name, expected in reference.items() if expected is not None}
    bound = floor * max(used.values())
    right = {
        name
        for name, expected in used.items()
        if name in norms and abs(float(norms[name][EXCHANGED]) - expected) <= tolerance * expected + bound
    }
    kept = {number: use for number, use in uses.items() if right.intersection(use.names.values())}
    return Plan(kept, tuple(name for name in used if name not in right), unused, penultimate, capture.count)


def _autograd_norms(classifier: nn.Module, image_1CHW: Tensor) -> dict[str, float | None]:
    """The definition, for one image: plain autograd on a batch of one, the all-hot objective; None: not reached."""
    parameters = dict(classifier.named_parameters())
    with only_requiring_grad(classifier, parameters):
        logits = forward(classifier, image_1CHW)
        if not logits.requires_grad:
            raise ClassifierError(
                "the classifier's logits are cut off from its parameters (torch.no_grad, .detach() or "
                ".numpy() in its forward pass); gradients need the whole path"
            )
        loss = OBJECTIVES["all_hot"](logits).sum()
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {
        name: None if gradient is None else float(squared_norm(gradient.reshape(1, -1)))
        for name, gradient in zip(parameters, gradients, strict=True)
    }


def _layouts(classifier: nn.Module, probe: Tensor, capture: Capture, logits: Tensor) -> dict[int, int]:
    exchanged = probe.detach().clone()
    exchanged[EXCHANGED] = exchanged[EXCHANGED].flip(0, 1).roll(1, 2) + 1.0
    with Capture() as other:
        changed = forward(classifier, exchanged.requires_grad_())
    untouched = [row for row in range(PROBES) if row != EXCHANGED]
    if not torch.allclose(changed[untouched], logits[untouched], rtol=1e-4, atol=1e-5, equal_nan=True):
        raise ClassifierError("images of one batch influence each other's logits; per-image gradients do not exist")
    found = {
        number: _batch_position(record, other.records[number])
        for number, record in capture.records.items()
        if number in other.records and record.edge is not None
    }
    return {number: before for number, before in found.items() if before is not None}


def _batch_position(record: Record, other: Record) -> int | None:
    """Positions before the batch, or None when no layout explains what changed."""
    if record.rule.source:  # nothing changes with the images; the comparison with autograd tells whether this is so
        return 1 if record.output.shape[0] == PROBES else None
    features = record.call.feature_dims
    if record.output.shape != other.output.shape or record.output.dim() <= features:
        return None
    difference = (record.output - other.output).abs().flatten(record.output.dim() - features).amax(-1).flatten()
    noise = 16 * torch.finfo(difference.dtype).eps * record.output.abs().max()
    changed = (difference > noise).cpu()
    positions = changed.numel()
    if positions % PROBES:
        return None
    each = positions // PROBES
    untouched = [row for row in range(PROBES) if row != EXCHANGED]
    # A position may stay as it was (a class token before the first attention), but no other image's may change.
    possible = [
        before
        for before in range(1, each + 1)
        if each % before == 0 and not changed.view(before, PROBES, -1)[:, untouched].any()
    ]
    return possible[0] if len(possible) == 1 and changed.any() else None


def named(record: Record, names: Mapping[int, str]) -> dict[str, str]:
    """Role -> name of the parameters that a call uses; `names` by id of the parameter."""
    return {role: names[id(tensor)] for role, tensor in record.call.parameters.items() if id(tensor) in names}


def _penultimate(capture: Capture, logits: Tensor) -> int | None:
    for number, record in reversed(capture.records.items()):
        linear = record.rule is RULES[F.linear] and record.call.x.dim() == 2
        if linear and record.output.data_ptr() == logits.data_ptr():
            return number
    return None


def norms_of_records(
    plan: Plan, records: Mapping[int, Record], logits_BK: Tensor, loss: Tensor, batch: int, *, keep_graph: bool = True
) -> dict[str, Tensor]:
    """Squared norms [B] by parameter name, of the planned calls: one backward pass to their outputs."""
    numbers = [number for number in plan.uses if records[number].edge is not None]
    edges = [edge for number in numbers if (edge := records[number].edge) is not None]
    if not edges or not loss.requires_grad:
        return {}
    for number in numbers:  # before autograd, whose words for it are not the user's
        records[number].check_input()
    gradients: tuple[Tensor | None, ...] = torch.autograd.grad(loss, edges, retain_graph=keep_graph, allow_unused=True)
    norms: dict[str, Tensor] = {}
    sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=logits_BK.device, dtype=logits_BK.dtype))
    for number, gradient in zip(numbers, gradients, strict=True):
        if gradient is None:
            continue
        use, record = plan.uses[number], records[number]
        shared = plan.shared.intersection(use.names.values())
        for role, value in _apply(record, gradient, use, batch, materialise=bool(shared)).items():
            name = use.names.get(role)
            if name in shared:
                sums[name] = sums[name] + value
            elif name is not None:
                norms[name] = squared_norm(value) if shared else value
    return norms | {name: squared_norm(value) for name, value in sums.items()}


def _apply(record: Record, gradient: Tensor, use: Use, batch: int, *, materialise: bool) -> Gradients:
    features = record.call.feature_dims
    g = _batch_first(gradient, features, use.before, batch)
    x = g if record.rule.source else _batch_first(record.call.x.detach(), features, use.before, batch)
    return (record.rule.gradients if materialise else record.rule.squared_norms)(record.call, x, g)


def _batch_first(tensor: Tensor, feature_dims: int, before: int, batch: int) -> Tensor:
    """[positions with the batch among them, *features] as [B, Q, *features]; a view where the batch comes first."""
    features = tensor.shape[tensor.dim() - feature_dims :]
    positions = math.prod(tensor.shape[: tensor.dim() - feature_dims])
    after = positions // (before * batch)
    return tensor.reshape(before, batch, after, *features).transpose(0, 1).reshape(batch, before * after, *features)
