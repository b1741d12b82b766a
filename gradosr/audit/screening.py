"""Nightly screening: what is new in an archive since the night before, and whether it should alert somebody.

RUN/screenings/NIGHT/archive.json.gz   the shards of the archive that night: part -> name and the night it was new
RUN/screenings/NIGHT/...               the audit of what was new
RUN/screenings/NIGHT/screening.json    written last; its presence completes the night
RUN/screenings/NIGHT/told.json         marks that nothing of the night has to be reported any longer
RUN/screenings/NIGHT/told-*.json       marks that one of two receivers, webhook and command, was told
RUN/screenings/index.html              the trend, and a line for each of the last nights

A night that was killed has no screening.json, so the next night covers what it scored. A tripped night is reported at
least once: a screening that is killed after a receiver has heard and before that is marked reports it again, with the
same id.
"""

import tempfile
from collections import defaultdict
from collections.abc import Collection, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.compute as pc

from gradosr.audit import audit, report
from gradosr.audit.clusters import group
from gradosr.audit.gates import NightFacts, judge
from gradosr.audit.known import bundle_of, read_known_images
from gradosr.audit.material import stored, vectors_of
from gradosr.audit.nights import Counts, History, Night, Seen
from gradosr.audit.rows import OpenPart, RunTable, id_of
from gradosr.audit.tally import count
from gradosr.audit.webhook import receivers, signing_key, tell
from gradosr.config import AuditSettings, ScreenJob
from gradosr.errors import EmptyTable, RunFailed
from gradosr.results.outcome import Outcome
from gradosr.run.plan import Plan, Summary, finish
from gradosr.store import Store, join

SHOWN = 90  # nights shown on the index page
TOLD_FOR = 90  # screenings that tell of a night before it is given up
LOOKED_AT = 2 * TOLD_FOR  # nights among which one may still have to be told, even if many screenings were killed
MOST_GROUPED = 20_000  # most images over the threshold that are clustered
FEWEST_DISMISSED = 2  # labelled images that dismiss a cluster; a single one may be a slip
MOSTLY = 0.5  # share of new images above which a cluster counts as new


def check(job: ScreenJob) -> None:
    """Raise ConfigError if something that the job will need is known to be missing before work starts."""
    if job.webhook:
        signing_key(job.webhook)


def close(
    job: ScreenJob, plan: Plan, outcome: Outcome, history: History, labels: Mapping[str, str] | None = None
) -> tuple[Summary, Night | None]:
    """Finish the run and store a night for what is new in its table.

    `labels` are what people said that images of earlier nights show, by key. No night is stored if shards failed or
    were interrupted.
    """
    summary = finish(plan, outcome)
    if summary.failed or summary.interrupted:
        return summary, None
    store, now = Store(job.store, job.stores), datetime.now(ZoneInfo(job.timezone))
    name, seen = history.next_name(now), history.archive()
    archive = {shard.part: seen.get(shard.part, Seen(shard.name, name)) for shard in plan.shards}
    before = history.nights(job.baseline_nights)
    missing = sorted({old.shard for old in seen.values()} - {shard.name for shard in plan.shards})
    fresh = [part for part, one in archive.items() if one.night == name]
    window = [part for part, one in archive.items() if one.night in {night.night for night in before}]
    counts, share = _audited(job, store, plan.folder.uri, fresh, history.path(name))
    sizes = _new_classes(job, store, plan.folder.uri, fresh, window, labels or {})
    verdicts = judge(job.gates, NightFacts(counts, before, len(missing), len(seen), sizes))
    made, told_to = now.isoformat(timespec="seconds"), tuple(receivers(job))
    night = Night(name, made, counts, len(plan.shards), len(fresh), tuple(missing), verdicts, share, told_to)
    history.commit(night, archive)
    page = report.render_nights(job.output, [one.document() for one in history.nights(SHOWN)])
    store.write(history.path("index.html"), page.encode())
    return summary, night


def tell_all(job: ScreenJob, history: History) -> None:
    """Report the nights that have still to be reported, oldest first. Raises RunFailed if one of them was not taken.

    A report that fails holds up no other one. It is repeated in each screening, TOLD_FOR times; nights before the
    newest are tried once each time, so that a receiver that is away for weeks costs little time.
    """
    owed, waiting, given_up, last_fault = list[Night](), 0, list[str](), ""
    for night in history.untold(LOOKED_AT):
        if night.tripped and set(night.receivers).intersection(receivers(job)):
            owed.append(night)
        else:
            history.mark_told(night)
    for night in owed:
        if fault := _tell(job, history, night, None if night is owed[-1] else 1):
            last_fault = fault
            if history.age(night) < TOLD_FOR:
                waiting += 1
                continue
            given_up.append(f"given up after {TOLD_FOR} screenings: {history.path(night.night, 'index.html')}")
        history.mark_told(night)
    if last_fault:
        raise RunFailed("; ".join([last_fault, *given_up, f"nights waiting to be told: {waiting}"]))


def _tell(job: ScreenJob, history: History, night: Night, attempts: int | None) -> str:
    """Report a night to those of its receivers that have not heard of it; return the last fault, empty if none."""
    told_to, fault = [one for one in receivers(job) if one in night.receivers], ""
    for receiver in told_to:
        if history.has_heard(receiver, night):
            continue
        try:
            tell(job, night, receiver, attempts)
        except RunFailed as error:
            fault = str(error)
        else:
            if len(told_to) > 1:
                history.mark_heard(receiver, night)
    return fault


def _audited(
    job: ScreenJob, store: Store, uri: str, fresh: Collection[str], out_uri: str
) -> tuple[Counts, Mapping[str, float] | None]:
    """Audit the parts `fresh`, upload the audit to `out_uri`, and return the counts and the share of unknown images."""
    settings = AuditSettings(store=job.store, stores=job.stores, fdr=job.fdr, explain=0)
    with tempfile.TemporaryDirectory() as place:
        out = Path(place)
        try:
            found = audit(store, uri, settings, out=out, only=fresh)
        except EmptyTable:  # a night without new images
            return Counts(0, 0, 0), None
        for path in sorted(out.rglob("*")):
            if path.is_file():
                with path.open("rb") as file:
                    store.write(join(out_uri, path.relative_to(out).as_posix()), file)
    prevalence = found["prevalence"]
    share = {name: prevalence[name] for name in ("estimate", "low", "high")}
    counts = Counts(found["rows"], found["images"], found["unknown"])
    return counts, None if prevalence["estimate"] is None else share


def _new_classes(
    job: ScreenJob,
    store: Store,
    uri: str,
    fresh: Collection[str],
    window: Collection[str],
    labels: Mapping[str, str],
) -> list[int]:
    """Return the number of new images in each cluster that consists mostly of new images and is not dismissed.

    Clusters are formed among the images over the threshold in the parts of both `fresh` and `window`, and in those that
    hold images with a label that the job dismisses. Images that the bundle has learned from tell what a cluster is, and
    count for nothing else.
    """
    if job.gates.new_candidate_class is None or not window:
        return []
    try:
        new = RunTable(store, uri, fresh)
        labelled = _parts_of(RunTable(store, uri), [key for key, label in labels.items() if label in job.dismissed])
        both = RunTable(store, uri, {*fresh, *window, *labelled})
        tally = count(both, None, MOST_GROUPED, vectors=vectors_of(both), first=labels)
    except EmptyTable:
        return []
    shards = set(count(new, None, 0).by_shard)
    bundle, _ = bundle_of(store, both, AuditSettings(store=job.store, stores=job.stores))
    known, _ = read_known_images(store, bundle)
    groups = group(stored(both, tally, known.reference), None, MOST_GROUPED, new.kind, both.about["classes"]).group_of
    members: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in tally.sample.settled()[0]:
        if row["id"] in groups:
            members[groups[row["id"]]].append(row)
    said = {id_of(key): label in job.dismissed for key, label in labels.items()}
    learned = set(both.about["learned"])
    sizes = list[int]()
    for rows in members.values():
        named = [said[row["id"]] for row in rows if row["id"] in said]
        of_now = [row["shard"] in shards for row in rows if row["id"] not in learned]
        if sum(of_now) > MOSTLY * len(of_now) and not (len(named) >= FEWEST_DISMISSED and all(named)):
            sizes.append(sum(of_now))
    return sizes


def _parts_of(table: RunTable, keys: Collection[str]) -> set[str]:
    """Return the names of the parts that hold any of the keys."""
    found: set[str] = set()
    sought = pa.array(sorted(keys), pa.string())

    def look(part: str, opened: OpenPart) -> None:
        if any(pc.any(pc.is_in(rows["key"], sought)).as_py() for _, rows in opened.groups(["key"])):
            with table.lock:
                found.add(part)

    if keys:
        table.each(look)
    return found
