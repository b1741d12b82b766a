"""Selection of the fastest of several exact forms, measured on a few samples of the first large batch.

The cost of a form depends more on the machine than on its counted work: a loop over samples is nearly free on a CPU and
far too slow on a GPU, while small batched products are the opposite.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradosr.gradients.calls import Gradients

CLEARLY = 0.9
"""Share of the default form's time below which another form replaces it, so that choices are stable. The default is the
form with the least counted work."""

WORTH_SAVING = 1e-3
"""Time in seconds of a batch below which no other form is tried, so that small networks give identical bits in every
process. On a CPU, it is also the least time for which a form is measured."""
WORTH_SAVING_ON_A_GPU = 5e-5
SAMPLES = 8
"""Number of samples of a batch on which forms are measured on a CPU, if that takes long enough to tell them apart."""
HOPELESS = 3
"""Multiple of the shortest time after which a form is not run again."""
EVERY = slice(None)

Norms = Callable[[str | None, slice], Gradients]
"""Function (form, samples) -> the norms of those samples of the batch."""


@dataclass(frozen=True)
class Measured:
    """Times of the forms of one call for one batch; the form with the least counted work comes first."""

    batch: int
    seconds: dict[str, float]
    """Seconds that the batch takes, by form; nan for a form that was chosen without measuring."""

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

    def fastest(self, number: int, forms: Callable[[], Sequence[str]], norms: Norms, grad: Tensor) -> Gradients:
        """Return the norms of the whole batch in the fastest form.

        Measure again if the batch is more than twice as large as the one measured before.
        """
        known = self.measured.get(number)
        if known is None or len(grad) > 2 * known.batch:
            names = forms()
            if self._measure and len(names) > 1:
                known = Measured(len(grad), _measured(names, norms, grad))
            else:
                known = Measured(len(grad), dict.fromkeys(names[:1], math.nan))
            self.measured[number] = known
        return norms(known.fastest, EVERY)


def _measured(forms: Sequence[str], norms: Norms, grad: Tensor) -> dict[str, float]:
    """Return the seconds of each form, or only of the first if it takes too little time to be worth improving."""
    batch, favoured = len(grad), forms[0]
    # A GPU computes few samples in the time of many, so they would not tell; a CPU needs some for each thread.
    count = batch if grad.is_cuda else min(batch, max(SAMPLES, torch.get_num_threads()))
    seconds = _seconds(norms, favoured, count, grad)
    if seconds * batch / count <= (WORTH_SAVING_ON_A_GPU if grad.is_cuda else WORTH_SAVING):
        return {favoured: seconds * batch / count}
    if seconds < WORTH_SAVING and count < batch:
        count = min(batch, math.ceil(count * WORTH_SAVING / seconds))
        seconds = _seconds(norms, favoured, count, grad)
    found = {favoured: seconds}
    for form in forms[1:]:
        found[form] = _seconds(norms, form, count, grad, HOPELESS * min(found.values()))
    return {form: seconds * batch / count for form, seconds in found.items()}


def _seconds(norms: Norms, form: str, count: int, grad: Tensor, hopeless: float = math.inf) -> float:
    """Time the second run, because the first may compile kernels; the first, if it takes longer than `hopeless`."""
    first = _timed(norms, form, count, grad)
    return first if first > hopeless + WORTH_SAVING else _timed(norms, form, count, grad)


def _timed(norms: Norms, form: str, count: int, grad: Tensor) -> float:
    wait(grad)
    start = time.perf_counter()
    norms(form, slice(count))
    wait(grad)
    return time.perf_counter() - start


def wait(tensor: Tensor) -> None:
    """Wait until the tensor's device has finished its queued work."""
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
