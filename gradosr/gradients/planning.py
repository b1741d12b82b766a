"""Planning: find the rule that serves each parameter by probing, once per input shape, and verify it against autograd.

A call's tensors may hold the batch in any dimension: [B, ...], [T, B, ...] inside attention, [B * windows, ...]. Its
position is measured: one image of a probe batch is exchanged, and the positions that change belong to that image. Then
every norm is compared with autograd on a batch of one, in float64 if the classifier runs in it. A parameter whose rule
does not reproduce autograd is assigned to the exact fallback.
"""

import copy
import logging
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn import functional as F

from gradosr.errors import ClassifierError
from gradosr.gradients.calls import Call, squared_norm
from gradosr.gradients.capture import only_requiring_grad
from gradosr.gradients.convolution import folding_pays
from gradosr.gradients.folding import Fold
from gradosr.gradients.forms import Forms
from gradosr.gradients.layouts import Influence, check_repeats, find_layouts
from gradosr.gradients.objectives import OBJECTIVES
from gradosr.gradients.passes import Kept, Pass, forward, input_overwritten, is_out_of_memory
from gradosr.gradients.plan import Plan, Use
from gradosr.gradients.recorder import EXCHANGED, Record, Recorder
from gradosr.gradients.rules import RULES

logger = logging.getLogger(__name__)
PROBES = (3, 4)
"""Images in a probe batch. The second count is tried if the first leaves parameters without a rule, because a tensor of
parameters may happen to have as many rows as the batch has images."""
LAYERS = tuple(RULES[function] for function in (F.linear, F.conv1d, F.conv2d))
"""Rules of the layers among which the middle one is determined."""
OFF_CENTRE = 100.0
"""Mean of a BatchNorm's input, in its standard deviations, above which folding would lose too much precision."""


def make_plan(classifier: nn.Module, images_BCHW: Tensor, names: Collection[str]) -> Plan:
    """Return the plan of the norms of the named parameters, for images of this shape, type and device.

    Raise ClassifierError if the classifier is unsuitable.
    """
    check_mode(classifier)
    plans: list[Plan] = []
    for count in PROBES:
        try:
            plans.append(_plan_by_probing(classifier, images_BCHW, names, count))
        except Influence:
            if count == PROBES[-1] and not plans:
                raise
        else:
            if not plans[-1].fallback:
                break
    return min(plans, key=lambda plan: len(plan.fallback))


def _plan_by_probing(classifier: nn.Module, images_BCHW: Tensor, names: Collection[str], count: int) -> Plan:
    probe = torch.randn(count, *images_BCHW.shape[1:], generator=torch.Generator().manual_seed(0))
    probe = probe.to(images_BCHW.device, images_BCHW.dtype)
    try:
        return _plan(_precise_copy(classifier), probe.double(), names, tolerance=1e-6, floor=1e-12)
    except ClassifierError:
        raise
    except (RuntimeError, TypeError, NotImplementedError) as error:  # the network casts, or an operator lacks float64
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        logger.info("verified in %s, not in float64: %s", images_BCHW.dtype, error)
        return _plan(classifier, probe, names, tolerance=1e-2, floor=1e-6)


def _precise_copy(classifier: nn.Module) -> nn.Module:
    """Copy the classifier in float64, with a small random change to every parameter.

    Without it, nothing could be measured or verified where gradients vanish: at a head or a residual scale that starts
    at zero, or behind a dead activation.
    """
    # In channels-last order, torch's float64 depthwise convolution takes eight times as long on a CPU.
    precise = copy.deepcopy(classifier).double().to(memory_format=torch.contiguous_format)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in precise.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.01 * noise.to(parameter.device))
    return precise


def check_mode(classifier: nn.Module) -> None:
    """Raise ClassifierError if the classifier is in training mode."""
    training = [name or "the classifier itself" for name, module in classifier.named_modules() if module.training]
    if training:
        raise ClassifierError(f"{training[0]} is in training mode; call .eval() on the classifier first")


def _plan(classifier: nn.Module, probe: Tensor, names: Collection[str], *, tolerance: float, floor: float) -> Plan:
    parameters = dict(classifier.named_parameters())
    with only_requiring_grad(classifier, parameters):
        recorder = Recorder(classifier, probe.requires_grad_())
        with recorder:
            logits = forward(classifier, recorder.images)
        layouts = find_layouts(classifier, probe.detach(), recorder, logits.detach())
        uses = {number: _use(recorder.records[number], before, parameters) for number, before in layouts.items()}
        folds = _folds(classifier, recorder, uses, logits)
    reference = _autograd_norms(classifier, probe.detach()[EXCHANGED : EXCHANGED + 1], names)
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
    with_folds = verified(replace(plan, uses=folds).narrowed(names))
    if not with_folds.fallback or not with_folds.folded:
        return with_folds
    return min(with_folds, verified(plan.narrowed(names)), key=lambda plan: len(plan.fallback))


def _verified(
    plan: Plan,
    classifier: nn.Module,
    probe: Tensor,
    logits: Tensor,
    used: Mapping[str, float],
    tolerance: float,
    floor: float,
) -> Plan:
    """Return the plan after moving parameters whose norm is wrong or missing to its fallback."""
    one = Pass(plan, classifier, Kept(forms=Forms(measure=False)))
    again = one.forward(probe)
    norms = one.backward(OBJECTIVES["all_hot"](again).sum())
    if not torch.allclose(again, logits, rtol=1e3 * tolerance, atol=1e3 * floor, equal_nan=True):
        check_repeats(classifier, probe, logits)
        norms = {}
    bound = floor * max(used.values(), default=0.0)
    right = {
        name
        for name, expected in used.items()
        if name in norms and abs(float(norms[name][EXCHANGED]) - expected) <= tolerance * expected + bound
    }
    kept = {n: use for n, use in plan.uses.items() if not use.wanted or right.intersection(use.parameters)}
    return replace(plan, uses=kept, fallback=tuple(name for name in used if name not in right))


def _autograd_norms(classifier: nn.Module, image_1CHW: Tensor, names: Collection[str]) -> dict[str, float | None]:
    """Return each named parameter's squared norm for one image from plain autograd with the all-hot objective.

    The value is None for a parameter that no gradient reaches.
    """
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
            gradients = torch.autograd.grad(loss, [parameters[name] for name in names], allow_unused=True)
        except RuntimeError as error:
            if "inplace" not in str(error):
                raise
            raise input_overwritten() from error
    return {
        name: None if gradient is None else float(squared_norm(gradient.reshape(1, -1)))
        for name, gradient in zip(names, gradients, strict=True)
    }


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
    """Return the uses after folding every BatchNorm that can and should be folded into the convolution before it."""
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
    """Count for each node of the autograd graph how many nodes read its output."""
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
