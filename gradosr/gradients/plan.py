"""The plan of how every parameter of a classifier gets its norm, for one input shape."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from gradosr.gradients.folding import Fold


@dataclass(frozen=True)
class Use:
    """One ruled call that serves parameters."""

    function: str
    """Name of the function called."""
    before: int
    """Number of output positions that precede the batch: 1 for [B, ...], T for [T, B, ...]."""
    names: Mapping[str, str]
    """Parameter name by role, for roles that a parameter fills directly."""
    derived: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Parameter names by role, for roles filled by a tensor that is computed from parameters."""
    swapped: bool = False
    """True if the parameter is the first operand of a symmetric function."""
    fold: Fold | None = None
    """The BatchNorm that is folded into this convolution."""
    wanted: bool = True
    """False if no norm of its parameters is asked for, so that no gradient needs to reach this call."""

    @property
    def parameters(self) -> tuple[str, ...]:
        """Every parameter that receives a part of its gradient from this call, once per role."""
        folded = () if self.fold is None else self.fold.names.values()
        return (*self.names.values(), *(name for names in self.derived.values() for name in names), *folded)


@dataclass(frozen=True)
class Plan:
    """Assignment of every parameter of a classifier to the calls that give its norm, for one input shape."""

    uses: Mapping[int, Use]
    """Uses by number of the ruled call."""
    fallback: tuple[str, ...]
    """Parameters without a rule that reproduces autograd; their gradients come from batches of one."""
    unused: tuple[str, ...]
    """Parameters that no gradient reaches; their norm is zero."""
    penultimate: int | None
    """Number of the linear call that computes the logits; its input is the features."""
    middle: int | None
    """Number of the middle call among convolutions and linear layers; its input is the middle activations."""
    calls: int
    """Number of ruled calls in one forward pass."""

    def narrowed(self, names: Collection[str]) -> "Plan":
        """Return the plan in which only uses of the named parameters are wanted; backward passes end at the first."""
        uses = {
            number: replace(use, wanted=not set(use.parameters).isdisjoint(names)) for number, use in self.uses.items()
        }
        return replace(self, uses=uses)

    @cached_property
    def shared(self) -> frozenset[str]:
        """Parameters with more than one use; their gradients are added before the norm is taken."""
        seen = Counter(name for use in self.uses.values() for name in use.parameters)
        return frozenset(name for name, uses in seen.items() if uses > 1)

    @cached_property
    def derived(self) -> frozenset[str]:
        """Parameters from which other tensors are computed before they meet an image."""
        uses = [use for use in self.uses.values() if use.wanted]
        return frozenset(name for use in uses for names in use.derived.values() for name in names)

    @cached_property
    def folded(self) -> frozenset[int]:
        """Numbers of the BatchNorm calls that are folded into a convolution."""
        return frozenset(use.fold.batch_norm for use in self.uses.values() if use.fold)
