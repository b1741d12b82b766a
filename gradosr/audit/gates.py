"""Gates: conditions on a night's screening. A gate that trips is reported to the webhook and the command of the job.

To add a gate, write a function like those below, give it a line in GATES, and give its bound a field in
`gradosr.config.Gates`. Nothing else names the gates one by one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from gradosr.audit.nights import Counts, Night, Verdict
from gradosr.audit.proportions import difference, wilson
from gradosr.config import Allowance, Gates
from gradosr.run.plan import allowed


@dataclass(frozen=True)
class NightFacts:
    """The facts about a night that gates judge."""

    counts: Counts
    """Counts of the rows that the night added."""
    before: Sequence[Night] = ()
    """Earlier nights that this one is compared with, oldest first."""
    missing: int = 0
    """Number of shards of the night before that no longer exist."""
    archive_before: int = 0
    """Number of shards in the archive the night before."""
    new_classes: Sequence[int] = ()
    """Number of new images in each cluster that earlier nights hardly had."""


class Gate(Protocol):
    """A function that judges a night by the bound that it finds in the config."""

    def __call__(self, gates: Gates, night: NightFacts, /) -> Verdict | None:
        """Return the verdict on a night, or None if the gate is off."""
        ...


def judge(gates: Gates, night: NightFacts) -> tuple[Verdict, ...]:
    """Return the verdicts of all gates that are on, in the order of GATES."""
    verdicts = (gate(gates, night) for gate in GATES.values())
    return tuple(verdict for verdict in verdicts if verdict)


def _unknown_rate(gates: Gates, night: NightFacts) -> Verdict | None:
    bound, counts = gates.unknown_rate, night.counts
    if bound is None:
        return None
    if not counts.images:
        return Verdict("unknown_rate", bound, None, tripped=False, why="no new image has a score")
    low, high = wilson(counts.unknown, counts.images)
    rate = counts.unknown / counts.images
    why = f"{rate:.2%} of {counts.images:,} new images are over the threshold ({low:.2%} to {high:.2%})"
    return Verdict("unknown_rate", bound, rate, low > bound, f"{why}; allowed are {bound:.2%}")


def _rate_increase(gates: Gates, night: NightFacts) -> Verdict | None:
    bound, counts, before = gates.rate_increase, night.counts, night.before
    if bound is None:
        return None
    images, unknown = (sum(getattr(one.counts, name) for one in before) for name in ("images", "unknown"))
    if not images or not counts.images:
        why = "no earlier night has images" if not images else "no new image has a score"
        return Verdict("rate_increase", bound, None, tripped=False, why=why)
    change, low, high = difference(counts.unknown, counts.images, unknown, images)
    why = f"the share over the threshold changed by {change:+.2%} ({low:+.2%} to {high:+.2%})"
    why = f"{why} against {len(before)} nights before; allowed are {bound:+.2%}"
    return Verdict("rate_increase", bound, change, low > bound, why)


def _new_candidate_class(gates: Gates, night: NightFacts) -> Verdict | None:
    bound, sizes = gates.new_candidate_class, night.new_classes
    if bound is None:
        return None
    if not night.before:
        why = "no earlier night to tell what is new"
        return Verdict("new_candidate_class", bound, None, tripped=False, why=why)
    largest = max(sizes, default=0)
    why = f"{len(sizes)} clusters are new; the largest has {largest:,} new images, allowed are under {bound:,}"
    return Verdict("new_candidate_class", bound, largest, largest >= bound, why)


def _bad_images(gates: Gates, night: NightFacts) -> Verdict | None:
    return _amount("bad_images", gates.bad_images, night.counts.bad, night.counts.rows, "images")


def _shards_missing(gates: Gates, night: NightFacts) -> Verdict | None:
    return _amount("shards_missing", gates.shards_missing, night.missing, night.archive_before, "shards")


def _amount(gate: str, bound: Allowance | None, found: int, total: int, of: str) -> Verdict | None:
    if bound is None:
        return None
    most = allowed(bound, total)
    return Verdict(gate, bound, found, found > most, f"{found:,} of {total:,} {of}; allowed are {most:,}")


GATES: dict[str, Gate] = {
    "unknown_rate": _unknown_rate,
    "rate_increase": _rate_increase,
    "new_candidate_class": _new_candidate_class,
    "bad_images": _bad_images,
    "shards_missing": _shards_missing,
}
"""The gates by name, which is also that of their bound in `gradosr.config.Gates`."""
