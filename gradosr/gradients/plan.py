"""How every parameter of a classifier gets its norm, for one input shape."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from gradosr.gradients.folding import Fold


@dataclass(frozen=True)
class Use:
    """One ruled call that serves parameters."""

    function: str
    """Name of the function called."""
    before: int
    """Positions of the output that lie before the batch: 1 for [B, ...], T for [T, B, ...]."""
    names: Mapping[str, str]
    """Role -> name of the parameter that stands there itself."""
    derived: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Role -> names of the parameters that the tensor there is computed from."""
    swapped: bool = False
    """Of a symmetric function: the parameter is the first operand."""
    fold: Fold | None = None
    """Of a convolution: the BatchNorm that becomes part of it."""

    @property
    def parameters(self) -> tuple[str, ...]:
        """Every parameter that gets a part of its gradient here; once per role."""
        folded = () if self.fold is None else self.fold.names.values()
        return (*self.names.values(), *(name for names in self.derived.values() for name in names), *folded)


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
    middle: int | None
    """Number of the middle one of the calls of convolutions and linear layers; its input is the middle activations."""
    calls: int
    """Ruled calls of one forward pass."""

    @cached_property
    def shared(self) -> frozenset[str]:
        """Parameters with more than one use: their gradients add before the norm."""
        seen = Counter(name for use in self.uses.values() for name in use.parameters)
        return frozenset(name for name, uses in seen.items() if uses > 1)

    @cached_property
    def derived(self) -> frozenset[str]:
        """Parameters from which other tensors are computed before they meet an image."""
        return frozenset(name for use in self.uses.values() for names in use.derived.values() for name in names)

    @cached_property
    def folded(self) -> frozenset[int]:
        """Numbers of the BatchNorm calls that are part of a convolution."""
        return frozenset(use.fold.batch_norm for use in self.uses.values() if use.fold)
