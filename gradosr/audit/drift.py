"""Changes since a baseline run that was scored with the same bundle."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradosr.audit.proportions import difference, holm, p_of_difference
from gradosr.audit.rows import OpenPart, RunTable, differing, key_hash
from gradosr.audit.tally import Tally
from gradosr.errors import ConfigError

MOST_KEYS = 10_000_000
"""Most hashes of keys held at once for either run; beyond it, the hashes below a bound are used as a sample."""


def check_baseline(table: RunTable, baseline: RunTable) -> list[str]:
    """Return notes on the settings in which the runs differ.

    Raises ConfigError if the bundles differ, because their scores cannot be compared.
    """
    ours, theirs = table.fingerprint, baseline.fingerprint
    if ours["bundle"] != theirs["bundle"]:
        raise ConfigError(
            f"{baseline.folder.uri}: a baseline of another bundle ({theirs['bundle']} against {ours['bundle']}); "
            "score the baseline's archive with this bundle into a folder of its own"
        )
    notes = [] if baseline.listing.finished else ["the baseline run is not finished: compared with the parts there are"]
    kept = ("features", "representation", "signals", "embedder")  # these add columns and do not change scores
    if ours != theirs and (
        other := differing(*({k: v for k, v in f.items() if k not in kept} for f in (theirs, ours)))
    ):
        notes.append(f"the baseline run has {other}")
    return notes


def changes(table: RunTable, now: Tally, baseline: RunTable, before: Tally) -> tuple[dict[str, Any], list[str]]:
    """Compare two runs; return the `baseline` section of the document, and notes.

    The tests treat the two runs as independent samples. Images that are in both runs make them more alike than that, so
    an archive that has grown is called changed too rarely rather than too often.
    """
    classes = table.about["classes"]
    change, low, high = difference(now.unknown, now.images, before.unknown, before.images)
    p_values = [p_of_difference(now.unknown, now.images, before.unknown, before.images)]
    shares = list(zip(now.by_class[:, 0].tolist(), before.by_class[:, 0].tolist(), strict=True))
    p_values += [p_of_difference(one, now.images, two, before.images) for one, two in shares]
    adjusted = holm(p_values)
    by_class = [
        {
            "name": name,
            "before": two / max(1, before.images),
            "now": one / max(1, now.images),
            "p_value": p_value,
            "adjusted_p_value": corrected,
        }
        for name, (one, two), p_value, corrected in zip(classes, shares, p_values[1:], adjusted[1:], strict=True)
    ]
    appeared, vanished, exact = _moved(table, now, baseline, before)
    document = {
        "uri": baseline.folder.uri,
        "unknown_rate": before.unknown / max(1, before.images),
        "unknown_rate_change": {
            "difference": change,
            "low": low,
            "high": high,
            "p_value": p_values[0],
            "adjusted_p_value": adjusted[0],
        },
        "predicted_class_change": sorted(by_class, key=lambda entry: (entry["adjusted_p_value"], entry["p_value"])),
        "appeared": appeared,
        "vanished": vanished,
    }
    return document, [] if exact else ["images that appeared and vanished are estimated from a sample of the keys"]


def _moved(table: RunTable, now: Tally, baseline: RunTable, before: Tally) -> tuple[int, int, bool]:
    """Count the images that appeared and those that vanished; also return whether the counts are exact.

    A part that is in both runs is the same shard version with the same images, so only the keys of other parts are
    read.
    """
    fresh = sorted(now.part_rows.keys() - before.part_rows.keys())
    gone = sorted(before.part_rows.keys() - now.part_rows.keys())
    ours, theirs = _keys(table, fresh), _keys(baseline, gone)
    bound = min(ours.bound, theirs.bound)
    ours_N, theirs_N = ours.below(bound), theirs.below(bound)
    shared = len(np.intersect1d(ours_N, theirs_N, assume_unique=True))
    scale = (1 << 64) / bound
    return round((len(ours_N) - shared) * scale), round((len(theirs_N) - shared) * scale), bound == 1 << 64


@dataclass
class _Keys:
    """Hashes of keys below a bound that is lowered whenever there are too many."""

    hashes: list[NDArray[np.uint64]]
    held: int = 0
    bound: int = 1 << 64

    def add(self, fresh: NDArray[np.uint64]) -> None:
        fresh = _below(fresh, self.bound)
        self.hashes.append(fresh)
        self.held += len(fresh)
        while self.held > MOST_KEYS:
            self.bound //= 2
            self.hashes = [_below(np.concatenate(self.hashes), self.bound)]
            self.held = len(self.hashes[0])

    def below(self, bound: int) -> NDArray[np.uint64]:
        """Return the hashes below `bound`, each once."""
        return np.unique(_below(np.concatenate([np.zeros(0, np.uint64), *self.hashes]), bound))


def _below(hashes: NDArray[np.uint64], bound: int) -> NDArray[np.uint64]:
    return hashes if bound >= 1 << 64 else hashes[hashes < np.uint64(bound)]


def _keys(table: RunTable, parts: Sequence[str]) -> _Keys:
    keys = _Keys([])
    if not parts:
        return keys

    def read(_part: str, opened: OpenPart) -> None:
        for _, rows in opened.groups(["key"]):
            digests = b"".join(key_hash(key)[:8] for key in rows["key"].to_pylist())
            with table.lock:
                keys.add(np.frombuffer(digests, ">u8").astype(np.uint64))

    table.each(read, parts)
    return keys
