"""Finds which rule serves which parameter, once per input shape, by probing, and verifies it against autograd.

A call's tensors may hold the batch anywhere: [B, ...], [T, B, ...] inside attention, [B * windows, ...].
Where it is, is measured: one image of a probe batch is exchanged, and the positions that change are
that image's. Then every norm is compared with autograd on a batch of one, in float64 where the
classifier runs in it; a parameter whose rule does not reproduce autograd goes to the exact fallback.
"""

import copy
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn import functional as F

from gradosr.errors import ClassifierError
from gradosr.gradients.calls import Call, Rule, squared_norm
from gradosr.gradients.capture import Capture, Function, only_requiring_grad
from gradosr.gradients.convolution import folding_pays
from gradosr.gradients.folding import Fold
from gradosr.gradients.forms import Forms
from gradosr.gradients.objectives import OBJECTIVES
from gradosr.gradients.passes import Kept, Pass, Root, forward, input_overwritten, is_out_of_memory
from gradosr.gradients.plan import Plan, Use
from gradosr.gradients.rules import RULES

logger = logging.getLogger(__name__)

PROBES = (3, 4)
"""Images of a probe batch. The second count is tried where the first leaves parameters without a rule: a tensor of
parameters may have as many rows as the batch has images."""
EXCHANGED = 1  # an inner image: both neighbours must stay as they are
LAYERS = tuple(RULES[function] for function in (F.linear, F.conv1d, F.conv2d))
"""Among which the middle one is counted."""
OFF_CENTRE = 100.0
"""Mean of a BatchNorm's input in its standard deviations, beyond which folding would cancel too many digits."""


def make_plan(classifier: nn.Module, images_BCHW: Tensor) -> Plan:
    """Plan for images of this shape, type and device. Raises ClassifierError when the classifier cannot serve."""
    check_mode(classifier)
    plans: list[Plan] = []
    for count in PROBES:
        try:
            plans.append(_plan_by_probing(classifier, images_BCHW, count))
        except _Influence:
            if count == PROBES[-1] and not plans:
                raise
        else:
            if not plans[-1].fallback:
                break
    return min(plans, key=lambda plan: len(plan.fallback))


def _plan_by_probing(classifier: nn.Module, images_BCHW: Tensor, count: int) -> Plan:
    probe = torch.randn(count, *images_BCHW.shape[1:], generator=torch.Generator().manual_seed(0))
    probe = probe.to(images_BCHW.device, images_BCHW.dtype)
    try:
        return _plan(_precise_copy(classifier), probe.double(), tolerance=1e-6, floor=1e-12)
    except ClassifierError:
        raise
    except (RuntimeError, TypeError, NotImplementedError) as error:  # casts of its own, or operators without float64
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        logger.info("verified in %s, not in float64: %s", images_BCHW.dtype, error)
        return _plan(classifier, probe, tolerance=1e-2, floor=1e-6)


class _Influence(ClassifierError):
    """Images of one batch change each other's logits, or a tensor of three rows that is no batch was taken for one."""


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


class Origins:
    """What a tensor was computed from, read off the autograd graph."""

    def __init__(self, classifier: nn.Module, images: Tensor) -> None:
        self._names = {id(parameter): name for name, parameter in classifier.named_parameters()}
        self._images = images
        self._known: dict[Node, frozenset[str] | None] = {}

    def __call__(self, tensor: Any) -> frozenset[str] | None:
        """Names of the parameters, where a tensor is made of them alone; None where images take part."""
        if not isinstance(tensor, Tensor):
            return frozenset()
        if tensor is self._images:
            return None
        if tensor.grad_fn is None:
            return frozenset({self._names[id(tensor)]} if id(tensor) in self._names else ())
        return self._of_node(tensor.grad_fn)

    def _of_node(self, node: Node) -> frozenset[str] | None:
        stack = [node]
        while stack:
            current = stack[-1]
            if current in self._known:
                stack.pop()
                continue
            parents = [parent for parent, _ in current.next_functions if parent is not None]
            if missing := [parent for parent in parents if parent not in self._known]:
                stack.extend(missing)
                continue
            found = [self._known[parent] for parent in parents]
            names = [one for one in found if one is not None]
            leaf = frozenset[str]() if parents else self(getattr(current, "variable", None))
            self._known[current] = None if len(names) < len(found) or leaf is None else leaf.union(*names)
        return self._known[node]


@dataclass(frozen=True)
class Record:
    """One ruled call in which images and parameters meet, or by which a parameter becomes a part of every sample."""

    function: str
    rule: Rule
    call: Call
    roles: Mapping[str, frozenset[str]]
    """Parameters that the tensor of each role is made of."""
    output: Tensor
    input: Tensor
    """As it was given to the function."""
    node: Node | None
    swapped: bool


class Recorder(Capture):
    """Records every ruled call that could serve a parameter."""

    def __init__(self, classifier: nn.Module, images: Tensor, *, exchanged: bool = False) -> None:
        super().__init__()
        self.origins = Origins(classifier, images)
        self.records: dict[int, Record] = {}
        self.images = images
        self._exchanged = exchanged

    def see(self, number: int, rule: Rule, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The call's output; what it showed is kept."""
        swapped = rule.symmetric and len(args) == 2 and bool(self.origins(args[0]))
        ordered = args[::-1] if swapped else args
        of_parameters = bool(self.origins(ordered[0]))
        call = rule.bind(*ordered, **kwargs) if of_parameters == rule.source else None
        output = func(*args, **kwargs)
        if call is None or not isinstance(output, Tensor):
            return output
        origins = {role: self.origins(tensor) for role, tensor in call.parameters.items()}
        roles = {role: names for role, names in origins.items() if names}
        if not roles or (rule.source and not _becomes_a_batch(call.x, output, len(self.images))):
            return output
        constant = self.origins(call.x) == frozenset() and len(output) == len(self.images)
        if rule.source or constant:  # from here on it is a part of the samples
            output = Root.apply(self._own_of(output), self.images)
        self.records[number] = Record(
            func.__name__, rule, call, roles, output.detach(), args[0], output.grad_fn, swapped
        )
        return output

    def _own_of(self, source: Tensor) -> Tensor:
        """Of the exchanged image, another one: what follows from a class token alone shows where the batch is, too."""
        if not self._exchanged:
            return source
        own = source.detach().clone()
        own[EXCHANGED] = own[EXCHANGED] * 1.1 + 0.1
        return own


def _becomes_a_batch(parameter: Tensor, output: Tensor, batch: int) -> bool:
    return output.dim() > 1 and len(output) == batch and not (parameter.dim() == output.dim() and len(parameter) > 1)


def _plan(classifier: nn.Module, probe: Tensor, tolerance: float, floor: float) -> Plan:
    parameters = dict(classifier.named_parameters())
    with only_requiring_grad(classifier, parameters):
        recorder = Recorder(classifier, probe.requires_grad_())
        with recorder:
            logits = forward(classifier, recorder.images)
        layouts = _layouts(classifier, probe.detach(), recorder, logits.detach())
        uses = {number: _use(recorder.records[number], before, parameters) for number, before in layouts.items()}
        folds = _folds(classifier, recorder, uses, logits)
    reference = _autograd_norms(classifier, probe.detach()[EXCHANGED : EXCHANGED + 1])
    unused = tuple(name for name, expected in reference.items() if expected is None)
    used = {name: expected for name, expected in reference.items() if expected is not None}
    plan = Plan(uses, tuple(used), unused, _penultimate(recorder, logits), _middle(recorder), recorder.count)
    expected = logits.detach()
    del logits, recorder
    verified = partial(
        _verified,
        classifier=classifier,
        probe=probe.detach(),
        logits=expected,
        used=used,
        tolerance=tolerance,
        floor=floor,
    )
    with_folds = verified(replace(plan, uses=folds))
    if not with_folds.fallback or not with_folds.folded:
        return with_folds
    return min(with_folds, verified(plan), key=lambda plan: len(plan.fallback))


def _verified(
    plan: Plan,
    classifier: nn.Module,
    probe: Tensor,
    logits: Tensor,
    used: Mapping[str, float],
    tolerance: float,
    floor: float,
) -> Plan:
    """The plan with the parameters that it serves wrongly, or not at all, in its fallback."""
    one = Pass(plan, classifier, Kept(forms=Forms(measure=False)))
    again = one.forward(probe)
    norms = one.backward(OBJECTIVES["all_hot"](again).sum())
    if not torch.allclose(again, logits, rtol=1e3 * tolerance, atol=1e3 * floor, equal_nan=True):
        _check_repeats(classifier, probe, logits)
        norms = {}
    bound = floor * max(used.values())
    right = {
        name
        for name, expected in used.items()
        if name in norms and abs(float(norms[name][EXCHANGED]) - expected) <= tolerance * expected + bound
    }
    kept = {number: use for number, use in plan.uses.items() if right.intersection(use.parameters)}
    return replace(plan, uses=kept, fallback=tuple(name for name in used if name not in right))


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
        try:
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        except RuntimeError as error:
            if "inplace" not in str(error):
                raise
            raise input_overwritten() from error
    return {
        name: None if gradient is None else float(squared_norm(gradient.reshape(1, -1)))
        for name, gradient in zip(parameters, gradients, strict=True)
    }


def _layouts(classifier: nn.Module, probe: Tensor, recorder: Recorder, logits: Tensor) -> dict[int, int]:
    """Number of the call -> positions before the batch, for the calls where the batch is found."""
    exchanged = probe.clone()
    exchanged[EXCHANGED] = exchanged[EXCHANGED].flip(0, 1).roll(1, 2) + 1.0
    other = Recorder(classifier, exchanged.requires_grad_(), exchanged=True)
    with other:
        changed = forward(classifier, other.images).detach()
    others = [row for row in range(len(probe)) if row != EXCHANGED]
    if not torch.allclose(changed[others], logits[others], rtol=1e-4, atol=1e-5, equal_nan=True):
        _check_repeats(classifier, probe, logits)
        raise _Influence("images of one batch influence each other's logits; per-image gradients do not exist")
    found = {
        number: _batch_position(record, other.records[number], len(probe))
        for number, record in recorder.records.items()
        if number in other.records
    }
    return {number: before for number, before in found.items() if before is not None}


def _check_repeats(classifier: nn.Module, probe: Tensor, logits: Tensor) -> None:
    """Raise ClassifierError when the same images get other logits than before."""
    if not torch.allclose(forward(classifier, probe), logits, rtol=1e-4, atol=1e-5, equal_nan=True):
        raise ClassifierError(
            "the classifier gives other logits for the same images each time; make its forward pass repeatable "
            "(F.dropout drops in eval mode too unless it is given training=self.training)"
        )


def _batch_position(record: Record, other: Record, batch: int) -> int | None:
    """Positions before the batch, or None when no layout explains what changed."""
    if record.rule.source:  # nothing changes with the images; the comparison with autograd tells whether this is so
        return 1
    features = record.call.feature_dims
    for one, another in ((record.output, other.output), (record.call.x.detach(), other.call.x.detach())):
        found = _changed_image(one, another, features, batch)
        if found is not None:
            return found
    return None  # the output may hide a change behind a large bias, but the input changes neither


def _changed_image(one: Tensor, another: Tensor, feature_dims: int, batch: int) -> int | None:
    """The smallest number of positions before the batch by which the exchanged image alone has changed."""
    if one.shape != another.shape or one.dim() <= feature_dims:
        return None
    difference = (one - another).abs().flatten(one.dim() - feature_dims).amax(-1).flatten().cpu()
    if len(difference) % batch:
        return None
    rounding = 16 * torch.finfo(difference.dtype).eps * float(one.abs().max())
    return next((found for noise in (0.0, rounding) if (found := _before_batch(difference > noise, batch))), None)


def _before_batch(changed: Tensor, batch: int) -> int | None:
    # A position may stay as it was (a class token, padding of a window), but no other image's may change. Where
    # that leaves a choice, the comparison with autograd tells whether the smallest is right.
    each = len(changed) // batch
    others = [row for row in range(batch) if row != EXCHANGED]
    possible = (
        before
        for before in range(1, each + 1)
        if each % before == 0 and not changed.view(before, batch, -1)[:, others].any()
    )
    return next(possible, None) if changed.any() else None


def _use(record: Record, before: int, parameters: Mapping[str, nn.Parameter]) -> Use:
    direct = {
        role: name
        for role, names in record.roles.items()
        for name in names
        if record.call.parameters[role] is parameters[name]
    }
    derived = {role: tuple(sorted(names)) for role, names in record.roles.items() if role not in direct}
    return Use(record.function, before, direct, derived, record.swapped)


def _folds(classifier: nn.Module, recorder: Recorder, uses: Mapping[int, Use], logits: Tensor) -> dict[int, Use]:
    """The same uses, with every BatchNorm that can and should become part of the convolution before it."""
    tensors = {**dict(classifier.named_parameters()), **dict(classifier.named_buffers())}
    names = {id(tensor): name for name, tensor in tensors.items()}
    shared, consumers, result = Plan(uses, (), (), None, None, 0).shared, _consumers(logits), dict(uses)
    producers = {record.node: number for number, record in recorder.records.items() if number in uses}
    for number, record in recorder.records.items():
        before = producers.get(record.input.grad_fn)
        if record.rule is not RULES[F.batch_norm] or number not in uses or before is None:
            continue
        conv, call = recorder.records[before], record.call
        parts = [call.options["mean"], call.options["var"], *call.parameters.values(), *conv.call.parameters.values()]
        if (
            conv.rule in (RULES[F.conv1d], RULES[F.conv2d])
            and conv.node is not None
            and consumers[conv.node] == 1
            and all(id(part) in names and names[id(part)] not in shared for part in parts)
            and uses[before].before == uses[number].before == 1
            and _is_centred(call, conv.call)
            and folding_pays(conv.call, conv.call.x.unsqueeze(1), conv.output.unsqueeze(1))
        ):
            own = {role: names[id(tensor)] for role, tensor in call.parameters.items()}
            fold = Fold(
                number, names[id(call.options["mean"])], names[id(call.options["var"])], call.options["eps"], **own
            )
            result[before] = replace(uses[before], fold=fold)
            del result[number]
    return result


def _is_centred(norm: Call, conv: Call) -> bool:
    bias = 0.0 if conv.bias is None else conv.bias.detach()
    offset = (norm.options["mean"] - bias) * torch.rsqrt(norm.options["var"] + norm.options["eps"])
    return bool(offset.abs().amax() <= OFF_CENTRE)


def _consumers(logits: Tensor) -> Counter[Node]:
    """How many nodes of the graph read each node's output."""
    seen: Counter[Node] = Counter()
    stack = [logits.grad_fn] if logits.grad_fn else []
    while stack:
        for parent, _ in stack.pop().next_functions:
            if parent is not None:
                seen[parent] += 1
                if seen[parent] == 1:
                    stack.append(parent)
    return seen


def _penultimate(recorder: Recorder, logits: Tensor) -> int | None:
    for number, record in reversed(recorder.records.items()):
        linear = record.rule is RULES[F.linear] and record.call.x.dim() == 2
        if linear and record.output.data_ptr() == logits.data_ptr():
            return number
    return None


def _middle(recorder: Recorder) -> int | None:
    layers = [number for number, record in recorder.records.items() if record.rule in LAYERS]
    return layers[len(layers) // 2] if layers else None
