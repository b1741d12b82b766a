"""Selection of the fastest of several exact forms, measured on the first large batch.

The cost of a form depends more on the machine than on its counted work: a loop over samples is nearly free on a CPU and
far too slow on a GPU, while small batched products are the opposite.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradosr.gradients.calls import Gradients

CLEARLY = 0.9
"""Share of the default form's time below which another form replaces it, so that choices are stable. The default is the
form with the least counted work."""

WORTH_SAVING = 1e-3
"""Time in seconds below which no other form is tried, so that small networks give identical bits in every process."""
WORTH_SAVING_ON_A_GPU = 5e-5


@dataclass(frozen=True)
class Measured:
    """Times of the forms of one call on one batch; the form with the least counted work comes first."""

    batch: int
    seconds: dict[str, float]
    """Seconds by form; nan for a form that was chosen without measuring."""

    @property
    def fastest(self) -> str | None:
        """Name of the fastest form; None if there is only one way."""
        favoured = next(iter(self.seconds), None)
        if favoured is None:
            return None
        best = min(self.seconds, key=lambda form: self.seconds[form])
        return best if self.seconds[best] < CLEARLY * self.seconds[favoured] else favoured


class Forms:
    """The chosen form for every call of a plan, by call number."""

    def __init__(self, *, measure: bool = True) -> None:
        """Measure forms if `measure` is true; otherwise always choose the one with the least counted work."""
        self.measured: dict[int, Measured] = {}
        self._measure = measure

    def fastest(
        self,
        number: int,
        forms: Callable[[], Sequence[str]],
        norms: Callable[[str | None], Gradients],
        grad: Tensor,
    ) -> Gradients:
        """Return `norms` of the fastest form.

        Measure again if the batch is more than twice as large as the one measured before.
        """
        known = self.measured.get(number)
        if known is None or len(grad) > 2 * known.batch:
            names = forms()
            if self._measure and len(names) > 1:
                known = Measured(len(grad), dict(_measured(names, norms, grad)))
            else:
                known = Measured(len(grad), dict.fromkeys(names[:1], math.nan))
            self.measured[number] = known
        return norms(known.fastest)


def _measured(
    forms: Sequence[str], norms: Callable[[str | None], Gradients], grad: Tensor
) -> Iterator[tuple[str, float]]:
    """Yield the seconds of each form, or only of the first if it takes too little time to be worth improving."""
    favoured = _seconds(norms, forms[0], grad)
    yield forms[0], favoured
    if favoured > (WORTH_SAVING_ON_A_GPU if grad.is_cuda else WORTH_SAVING):
        yield from ((form, _seconds(norms, form, grad)) for form in forms[1:])


def _seconds(norms: Callable[[str | None], Gradients], form: str, grad: Tensor) -> float:
    """Time the second run, because the first may compile kernels."""
    norms(form)
    wait(grad)
    start = time.perf_counter()
    norms(form)
    wait(grad)
    return time.perf_counter() - start


def wait(tensor: Tensor) -> None:
    """Wait until the tensor's device has finished its queued work."""
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
