"""The state of a run, from its results folder alone: no cluster is asked, and neither Ray nor torch is imported."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any, Literal

from gradosr.errors import NotFound
from gradosr.results.folder import Listing, RunFolder
from gradosr.results.lease import EXPIRES, LeaseRecord, read_lease
from gradosr.results.outcome import SHOWN
from gradosr.results.stats import TableStats
from gradosr.store import Store
from gradosr.store.threads import threads
from gradosr.text import duration, printable

State = Literal["finished", "running", "ended", "silent", "unknown"]


@dataclass(frozen=True)
class RunStatus:
    """The state of a run, as told by its folder."""

    output: str
    state: State
    """One of finished, running, ended, silent or unknown.

    In a running run a driver is at work. In an ended or silent one none is: it ended, or shows no sign of life, before
    the run was finished. An unknown run is not finished and has no lease that tells of a driver.
    """
    shards: int | None
    """Number of shards in the archive as the last driver listed it; None if no driver has recorded it yet."""
    done: int
    """Number of finished parts."""
    missing: int | None
    """Number of shards without a part or a quarantine mark, including failed ones."""
    failed: int
    """Number of shards that failed under the last driver; the next one tries them again."""
    quarantined: int
    images: int
    """Number of rows in the parts whose counts are recorded."""
    images_complete: bool
    """True if the counts of all parts are recorded; a driver records them when it ends."""
    images_per_second: float | None
    """Rate under the last driver, since its first worker was ready."""
    eta: float | None
    """Seconds until the current driver is done, at its pace so far; None if no driver is at work."""
    driver: LeaseRecord | None
    sign_of_life: float | None
    """Seconds since the driver last wrote the lease, by its clock and the one here, which may differ."""
    reasons: dict[str, dict[str, str]]
    """The first reasons for `quarantined` and `failed`, by shard."""

    def facts(self) -> dict[str, Any]:
        """Return the status as plain data for a JSON document."""
        return asdict(self)


def read_status(store: Store, uri: str) -> RunStatus:
    """Read the status of the run in the folder `uri`. Raises InputError if there is none."""
    folder = RunFolder(store, uri)
    folder.about()
    listing, lease, stats = folder.look(), read_lease(store, uri), _document(store, folder.path("stats.json"))
    state, age = _state(listing, lease)
    progress = lease.progress if lease else {}
    shards = progress.get("archive_shards", stats.get("shards"))
    failed = stats.get("failed", {}) if state != "running" else {}
    done, quarantined = len(listing.parts), len(listing.quarantined)
    images, complete = _images(listing, folder.recorded_stats(), progress)
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
    """Read a JSON object of the folder; return an empty one if it is missing or damaged, as others record it too."""
    try:
        document = json.loads(store.read(uri))
    except (NotFound, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _state(listing: Listing, lease: LeaseRecord | None) -> tuple[State, float | None]:
    """Return the run's state, and the seconds since its driver last wrote the lease."""
    if lease is None:
        return ("finished" if listing.finished else "unknown"), None
    since = datetime.now(timezone.utc) - datetime.fromisoformat(lease.renewed_at.replace("Z", "+00:00"))
    age = max(0.0, since.total_seconds())
    if listing.finished:
        return "finished", age
    if lease.released:
        return "ended", age
    return ("running" if age <= EXPIRES else "silent"), age


def _images(listing: Listing, stats: TableStats, progress: Mapping[str, Any]) -> tuple[int, bool]:
    """Return the number of recorded rows, and whether they cover all parts.

    They are the rows recorded by drivers when they ended, plus those that the last driver has done since.
    """
    recorded = stats.only(listing.parts)
    rows, parts = recorded.counts().get("rows", 0), len(recorded)
    fresh = progress.get("done", 0) - progress.get("failed", 0) - progress.get("quarantined", 0)
    if fresh <= len(listing.parts) - parts:  # otherwise the driver ended and they are already recorded
        rows, parts = rows + progress.get("rows", 0), parts + fresh
    return rows, parts == len(listing.parts)


def _ratio(count: float, of: float) -> float | None:
    return count / of if of else None


def _eta(progress: Mapping[str, Any]) -> float | None:
    pace = _ratio(progress.get("seconds", 0), progress.get("done", 0))
    return None if pace is None else pace * (progress["pending_shards"] - progress["done"])


def _marks(store: Store, folder: RunFolder, parts: Iterable[str]) -> dict[str, str]:
    """Read the reasons of quarantine marks by shard."""
    with threads(SHOWN, "marks") as pool:
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
    """Format a status for people."""
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
