"""Runs that are scored again from the signals in their tables: what they need, and what becomes of their fingerprint.

The new run has a part of the same name for every part of the old one, as both are named after a shard of the same
archive: audits find its images, and the two tables can be compared part by part.
"""

import json
from collections.abc import Mapping
from typing import Any

from gradosr.archive.shards import Shard
from gradosr.bundle.manifest import HELD_OUT, Manifest, check_precision
from gradosr.errors import ConfigError, InputError, NotFound
from gradosr.results.folder import RunFolder
from gradosr.store import Store, join

HOW = "score its archive with `signals: all` into a new output"


def parts_of(store: Store, results: str) -> list[Shard]:
    """Return the parts of a finished run's table as shards to score again, by name. Raises InputError."""
    return [
        Shard(part, stored.uri, stored.version, stored.size, modified=stored.modified, part=part)
        for part, stored in sorted(RunFolder(store, results).finished_parts().items())
    ]


def fingerprint_after(store: Store, results: str, bundle: str, manifest: Manifest, digest: str) -> dict[str, Any]:
    """Return the fingerprint of a run that scores `results` again with the bundle of this manifest and digest.

    It is that of `results` with another bundle, and `rescored` lists the bundles before it, the one that saw the images
    first. Raises ConfigError or InputError if the bundle or the run does not allow it.
    """
    folder = RunFolder(store, results)
    about = folder.about()
    fingerprint: dict[str, Any] = about["fingerprint"]
    _check_signals(store, folder, fingerprint, bundle)
    if about["observer"] != manifest.observer:
        raise ConfigError(
            f"{bundle}: sees images otherwise than the bundle that scored {results} (another classifier, transform or "
            "choice of gradients); rescore with one that `gradosr learn` made from that bundle"
        )
    check_precision(fingerprint["precision"], manifest.precisions)
    return {**fingerprint, "bundle": digest, "rescored": [*fingerprint.get("rescored", ()), fingerprint["bundle"]]}


def fingerprint_before(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fingerprint of the run that was scored again, from that of the new run."""
    *earlier, bundle = fingerprint["rescored"]
    rest = {name: value for name, value in fingerprint.items() if name != "rescored"}
    return {**rest, "bundle": bundle, **({"rescored": earlier} if earlier else {})}


def _check_signals(store: Store, folder: RunFolder, fingerprint: Mapping[str, Any], bundle: str) -> None:
    """Raise InputError if the run did not store the signals of all images."""
    stored = fingerprint.get("signals", "none")
    if stored == "all":
        return
    counts = folder.recorded_stats().counts()
    scored, unknown = counts.get("ok", 0), counts.get("unknown", 0)
    others = scored - unknown
    if isinstance(stored, dict):
        others -= others // int(stored["sample"])
    number = f"{scored:,}" if stored == "none" else f"about {others:,}"
    size = _bytes_per_image(store, bundle)
    cost = f", which takes {size:,} bytes per image before compression" if size else ""
    raise InputError(f"{folder.uri}: {number} of {scored:,} scored images have no stored signals; {HOW}{cost}")


def _bytes_per_image(store: Store, bundle: str) -> int | None:
    """Return the size of the signals of one image, as the header of the bundle's own tells; None if it has none."""
    try:
        with store.open(store.stat(join(bundle, HELD_OUT))) as body:
            header = json.loads(body.read(int.from_bytes(body.read(8), "little")))
    except NotFound:  # made by an older gradosr
        return None
    shapes = [array["shape"] for name, array in header.items() if name.startswith("fitting.")]
    return sum(2 * int(width) for _, width in shapes)
