"""What a night may not show."""

from collections.abc import Sequence

from gradosr.audit.nights import Counts, Night, Verdict
from gradosr.audit.proportions import difference, wilson
from gradosr.config import Allowance, Gates
from gradosr.run.plan import allowed


def judge(
    gates: Gates, counts: Counts, before: Sequence[Night], missing: int, archive_before: int, new_classes: Sequence[int]
) -> tuple[Verdict, ...]:
    """What each named gate says of a night.

    `before` are the nights it is compared with, `archive_before` the shards of the last of them, `new_classes` the new
    images of each candidate class that earlier nights hardly had.
    """
    return tuple(verdict for verdict in (
        _unknown_rate(gates.unknown_rate, counts),
        _rate_increase(gates.rate_increase, counts, before),
        _new_class(gates.new_candidate_class, before, new_classes),
        _amount("bad_images", gates.bad_images, counts.bad, counts.rows, "images"),
        _amount("shards_missing", gates.shards_missing, missing, archive_before, "shards"),
    ) if verdict)  # fmt: skip


def _unknown_rate(bound: float | None, counts: Counts) -> Verdict | None:
    if bound is None:
        return None
    if not counts.images:
        return Verdict("unknown_rate", bound, None, tripped=False, why="no new image has a score")
    low, high = wilson(counts.unknown, counts.images)
    rate = counts.unknown / counts.images
    why = f"{rate:.2%} of {counts.images:,} new images are unknown ({low:.2%} to {high:.2%})"
    return Verdict("unknown_rate", bound, rate, low > bound, f"{why}; allowed are {bound:.2%}")


def _rate_increase(bound: float | None, counts: Counts, before: Sequence[Night]) -> Verdict | None:
    if bound is None:
        return None
    images, unknown = (sum(getattr(night.counts, name) for night in before) for name in ("images", "unknown"))
    if not images or not counts.images:
        why = "no earlier night has images" if not images else "no new image has a score"
        return Verdict("rate_increase", bound, None, tripped=False, why=why)
    change, low, high = difference(counts.unknown, counts.images, unknown, images)
    why = f"the unknown rate changed by {change:+.2%} ({low:+.2%} to {high:+.2%}) against {len(before)} nights before"
    return Verdict("rate_increase", bound, change, low > bound, f"{why}; allowed are {bound:+.2%}")


def _new_class(bound: int | None, before: Sequence[Night], sizes: Sequence[int]) -> Verdict | None:
    if bound is None:
        return None
    if not before:
        why = "no earlier night to tell what is new"
        return Verdict("new_candidate_class", bound, None, tripped=False, why=why)
    largest = max(sizes, default=0)
    why = f"{len(sizes)} candidate classes are new; the largest has {largest:,} new images, allowed are under {bound:,}"
    return Verdict("new_candidate_class", bound, largest, largest >= bound, why)


def _amount(gate: str, bound: Allowance | None, found: int, total: int, of: str) -> Verdict | None:
    if bound is None:
        return None
    most = allowed(bound, total)
    return Verdict(gate, bound, found, found > most, f"{found:,} of {total:,} {of}; allowed are {most:,}")
