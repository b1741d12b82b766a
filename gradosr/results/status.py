"""Where a run stands, from its results folder alone: no cluster is asked, neither Ray nor torch is imported."""

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any, Literal

from gradosr.errors import NotFound
from gradosr.results.folder import Listing, RunFolder, merged
from gradosr.results.lease import EXPIRES, LeaseRecord, read_lease
from gradosr.results.outcome import SHOWN
from gradosr.store import Store
from gradosr.text import duration, printable

State = Literal["finished", "running", "ended", "silent", "unknown"]


@dataclass(frozen=True)
class RunStatus:
    """What the run folder tells."""

    output: str
    state: State
    """finished; running (a driver is at work); ended or silent (no driver is at work: it ended, or gives no sign of
    life, before the run was finished); unknown (not finished, and no lease that tells of a driver)."""
    shards: int | None
    """Of the archive as the last driver listed it; None where no driver said so yet."""
    done: int
    """Parts there are."""
    missing: int | None
    """Shards without a part or a quarantine mark, failed ones included."""
    failed: int
    """Shards that failed under the last driver; the next one tries them again."""
    quarantined: int
    images: int
    """Rows of the parts whose counts are on record."""
    images_complete: bool
    """Whether these are all parts; a driver records the counts at its end."""
    images_per_second: float | None
    """Under the last driver, since its first worker was ready."""
    eta: float | None
    """Seconds until the driver at work is done, at its pace so far."""
    driver: LeaseRecord | None
    sign_of_life: float | None
    """Seconds since the driver gave one, by its clock and the one here, which may differ."""
    reasons: dict[str, dict[str, str]]
    """`quarantined` and `failed`: shard -> reason, of the first ones."""

    def facts(self) -> dict[str, Any]:
        """For a JSON document."""
        return asdict(self)


def read_status(store: Store, uri: str) -> RunStatus:
    """Where the run in the folder `uri` stands. Raises InputError where there is none."""
    folder = RunFolder(store, uri)
    folder.about()
    listing, lease, stats = folder.look(), read_lease(store, uri), _document(store, folder.path("stats.json"))
    state, age = _state(listing, lease)
    progress = lease.progress if lease else {}
    shards = progress.get("archive_shards", stats.get("shards"))
    failed = stats.get("failed", {}) if state != "running" else {}
    done, quarantined = len(listing.parts), len(listing.quarantined)
    images, complete = _images(listing, stats, progress)
    return RunStatus(
        output=uri,
        state=state,
        shards=shards,
        done=done,
        missing=None if shards is None else max(0, shards - done - quarantined),
        failed=max(len(failed), progress.get("failed", 0)),
        quarantined=quarantined,
        images=images,
        images_complete=complete,
        images_per_second=_ratio(progress.get("rows", 0), progress.get("seconds", 0)),
        eta=_eta(progress) if state == "running" else None,
        driver=lease,
        sign_of_life=age,
        reasons={
            "quarantined": _marks(store, folder, sorted(listing.quarantined)[:SHOWN]),
            "failed": dict(list(failed.items())[:SHOWN]),
        },
    )


def _document(store: Store, uri: str) -> dict[str, Any]:
    """A JSON object of the folder; empty where it is missing or damaged: it is never the only record."""
    try:
        document = json.loads(store.read(uri))
    except (NotFound, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _state(listing: Listing, lease: LeaseRecord | None) -> tuple[State, float | None]:
    """The run's state, and the seconds since its driver's last sign of life."""
    if lease is None:
        return ("finished" if listing.finished else "unknown"), None
    since = datetime.now(timezone.utc) - datetime.fromisoformat(lease.renewed_at.replace("Z", "+00:00"))
    age = max(0.0, since.total_seconds())
    if listing.finished:
        return "finished", age
    if lease.released:
        return "ended", age
    return ("running" if age <= EXPIRES else "silent"), age


def _images(listing: Listing, stats: Mapping[str, Any], progress: Mapping[str, Any]) -> tuple[int, bool]:
    """Rows on record, and whether of all parts: what drivers recorded at their end, and what the last one did since."""
    recorded = [entry["counts"] for part, entry in stats.get("parts", {}).items() if part in listing.parts]
    rows, parts = merged(recorded).get("rows", 0), len(recorded)
    fresh = progress.get("done", 0) - progress.get("failed", 0) - progress.get("quarantined", 0)
    if fresh <= len(listing.parts) - parts:  # else they are among the recorded ones: the driver ended
        rows, parts = rows + progress.get("rows", 0), parts + fresh
    return rows, parts == len(listing.parts)


def _ratio(count: float, of: float) -> float | None:
    return count / of if of else None


def _eta(progress: Mapping[str, Any]) -> float | None:
    pace = _ratio(progress.get("seconds", 0), progress.get("done", 0))
    return None if pace is None else pace * (progress["pending_shards"] - progress["done"])


def _marks(store: Store, folder: RunFolder, parts: Iterable[str]) -> dict[str, str]:
    """Shard -> reason of quarantine marks."""
    with ThreadPoolExecutor(SHOWN, "marks") as pool:
        marks = pool.map(lambda part: _document(store, folder.path("quarantine", f"{part}.json")), parts)
        return {str(mark.get("shard")): str(mark.get("reason")) for mark in marks}


_STATES = {
    "finished": "finished",
    "running": "a driver is at work",
    "ended": "not finished; its driver has ended, and the same command goes on",
    "silent": "not finished; its driver gives no sign of life, and the same command goes on",
    "unknown": "not finished; whether a driver is at work is not on record",
}


def status_report(status: RunStatus) -> str:
    """Where a run stands, for people."""
    lines = [f"{status.output}: {_STATES[status.state]}", f"shards       {_shards(status)}"]
    pace = "" if status.images_per_second is None else f", {status.images_per_second:,.0f}/s"
    eta = "" if status.eta is None else f", ETA {duration(status.eta)}"
    known = f"{'' if status.images_complete else 'at least '}{status.images:,}"
    lines.append(f"images       {known if status.images or status.images_complete else 'not counted yet'}{pace}{eta}")
    if status.driver and status.sign_of_life is not None:
        life = f"last sign of life {duration(status.sign_of_life)} ago, if its clock and this one agree"
        lines.append(f"driver       {status.driver.holder}; {life}")
    for kind, reasons in status.reasons.items():
        lines += [f"{kind:13}{shard}: {reason}" for shard, reason in reasons.items()]
        if hidden := getattr(status, kind) - len(reasons):
            lines.append(f"{kind:13}... and {hidden:,} more")
    return "\n".join(printable(line) for line in lines)


def _shards(status: RunStatus) -> str:
    total = "an unknown number" if status.shards is None else f"{status.shards:,}"
    missing = "" if status.missing is None else f", {status.missing:,} missing"
    return f"{status.done:,} of {total} done{missing}, {status.failed:,} failed, {status.quarantined:,} quarantined"
