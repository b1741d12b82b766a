"""A report of which rule and form compute each parameter's norm, and at what cost."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from gradosr.gradients.calls import Gradients
from gradosr.gradients.forms import Forms, Norms, wait
from gradosr.gradients.plan import Plan, Use

FALLBACK, NO_GRADIENT = "fallback", "no gradient"


@dataclass(frozen=True)
class Explained:
    """The way one parameter gets its norm. Times are for the whole call, which may serve several parameters."""

    parameter: str
    rule: str
    """Function whose rule is used: "conv2d", "conv2d + batch_norm" if both are computed in one pass, "linear of
    derived" if the layer uses a tensor computed from the parameter, "2 x linear" for several uses; or "fallback" or "no
    gradient"."""
    form: str | None
    """Form in use; None if there is only one way."""
    milliseconds: float | None
    """Time for the norms of the batch in the form in use; None if the gradients themselves are computed, or nothing is.
    For the fallback, the time for all its parameters together."""
    measured: Mapping[str, float]
    """Milliseconds of every form that was tried."""


class TimedForms(Forms):
    """The forms chosen earlier, with the shortest time in seconds that each call's norms took."""

    def __init__(self, chosen: Forms) -> None:
        super().__init__()
        self.measured = chosen.measured
        self.seconds: dict[int, float] = {}

    def fastest(self, number: int, forms: Callable[[], Sequence[str]], norms: Norms, grad: Tensor) -> Gradients:
        """Return the norms in the form chosen earlier, and record the time."""
        wait(grad)
        start = time.perf_counter()
        result = super().fastest(number, forms, norms, grad)
        wait(grad)
        seconds = time.perf_counter() - start
        self.seconds[number] = min(seconds, self.seconds.get(number, seconds))
        return result


def explained(plan: Plan, names: Sequence[str], forms: TimedForms, fallback_seconds: float) -> list[Explained]:
    """Return one entry per parameter, in order."""
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
