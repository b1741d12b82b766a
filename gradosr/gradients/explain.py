"""Which rule serves which parameter, in which form, at what cost."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from gradosr.gradients.calls import Gradients
from gradosr.gradients.forms import Forms, wait
from gradosr.gradients.plan import Plan, Use

FALLBACK, NO_GRADIENT = "fallback", "no gradient"


@dataclass(frozen=True)
class Explained:
    """How one parameter gets its norm. Times are of the whole call, which may serve several parameters."""

    parameter: str
    rule: str
    """Function whose rule serves it: "conv2d", "conv2d + batch_norm" where both are one pass, "linear of derived"
    for what a tensor is computed from, "2 x linear" for several uses; "fallback"; "no gradient"."""
    form: str | None
    """The one in use; None where there is but one way."""
    milliseconds: float | None
    """Of the norms of the batch, in the form in use; None where gradients themselves are made, or nothing is. Of the
    fallback: of all its parameters together."""
    measured: Mapping[str, float]
    """Milliseconds of every form that was tried."""


class TimedForms(Forms):
    """The forms that were chosen before, and the least seconds of each call's norms."""

    def __init__(self, chosen: Forms) -> None:
        super().__init__()
        self.measured = chosen.measured
        self.seconds: dict[int, float] = {}

    def fastest(
        self,
        number: int,
        forms: Callable[[], Sequence[str]],
        norms: Callable[[str | None], Gradients],
        grad: Tensor,
    ) -> Gradients:
        """As they are; timed."""
        wait(grad)
        start = time.perf_counter()
        result = super().fastest(number, forms, norms, grad)
        wait(grad)
        seconds = time.perf_counter() - start
        self.seconds[number] = min(seconds, self.seconds.get(number, seconds))
        return result


def explained(plan: Plan, names: Sequence[str], forms: TimedForms, fallback_seconds: float) -> list[Explained]:
    """One line per parameter, in order."""
    uses: dict[str, dict[int, Use]] = {}
    for number, use in plan.uses.items():
        for name in use.parameters:
            uses.setdefault(name, {})[number] = use
    return [_explain(plan, name, uses.get(name, {}), forms, fallback_seconds) for name in names]


def _explain(plan: Plan, name: str, uses: Mapping[int, Use], forms: TimedForms, fallback_seconds: float) -> Explained:
    if name in plan.fallback:
        return Explained(name, FALLBACK, None, 1e3 * fallback_seconds, {})
    if name in plan.unused or not uses:
        return Explained(name, NO_GRADIENT, None, None, {})
    rules = [_rule(name, use) for use in uses.values()]
    rule = " + ".join(f"{rules.count(one)} x {one}" if rules.count(one) > 1 else one for one in dict.fromkeys(rules))
    number = next(iter(uses))
    known, seconds = forms.measured.get(number), forms.seconds.get(number)
    return Explained(
        name,
        rule,
        known.fastest if known else None,
        None if seconds is None else 1e3 * seconds,
        {form: 1e3 * value for form, value in known.seconds.items() if not math.isnan(value)} if known else {},
    )


def _rule(name: str, use: Use) -> str:
    if any(name in names for names in use.derived.values()):
        return f"{use.function} of derived"
    return f"{use.function} + batch_norm" if use.fold else use.function
