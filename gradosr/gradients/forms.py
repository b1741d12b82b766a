"""Which of several exact forms is the fastest here: measured, on the first large batch.

What a form costs depends on the machine more than on its counted work: a loop over samples is nearly free on a CPU
and hopeless on a GPU, small batched products the reverse.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradosr.gradients.calls import Gradients

CLEARLY = 0.9
"""Share of the time of the form that counted work favours, below which another one displaces it: choices stay put."""

WORTH_SAVING = 1e-3
"""Seconds; below, the form that counted work favours stays, and small nets give the same bits in every process."""
WORTH_SAVING_ON_A_GPU = 5e-5


@dataclass(frozen=True)
class Measured:
    """The forms of one call, tried on one batch; the one that counted work favours first."""

    batch: int
    seconds: dict[str, float]
    """Not a number for a form that was taken unmeasured."""

    @property
    def fastest(self) -> str | None:
        """Its name; None where there is but one way."""
        favoured = next(iter(self.seconds), None)
        if favoured is None:
            return None
        best = min(self.seconds, key=lambda form: self.seconds[form])
        return best if self.seconds[best] < CLEARLY * self.seconds[favoured] else favoured


class Forms:
    """The choice for every call of a plan, by number."""

    def __init__(self, *, measure: bool = True) -> None:
        """Without measuring: the form that counted work favours."""
        self.measured: dict[int, Measured] = {}
        self._measure = measure

    def fastest(
        self,
        number: int,
        forms: Callable[[], Sequence[str]],
        norms: Callable[[str | None], Gradients],
        grad: Tensor,
    ) -> Gradients:
        """`norms` of the fastest form; tried anew where the batch is more than twice the one it was measured on."""
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
    """Seconds of each form; of the first one alone, where that takes no time worth saving."""
    favoured = _seconds(norms, forms[0], grad)
    yield forms[0], favoured
    if favoured > (WORTH_SAVING_ON_A_GPU if grad.is_cuda else WORTH_SAVING):
        yield from ((form, _seconds(norms, form, grad)) for form in forms[1:])


def _seconds(norms: Callable[[str | None], Gradients], form: str, grad: Tensor) -> float:
    """Of the second run: the first one may build kernels."""
    norms(form)
    wait(grad)
    start = time.perf_counter()
    norms(form)
    wait(grad)
    return time.perf_counter() - start


def wait(tensor: Tensor) -> None:
    """Until its device has done what it was given."""
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
