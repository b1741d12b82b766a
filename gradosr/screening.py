"""What is new in an archive since the night before, and whether somebody should be woken for it.

RUN/screenings/NIGHT/archive.json.gz   the shards of the archive that night: part -> name, and the night it was new
RUN/screenings/NIGHT/...               the audit of what was new
RUN/screenings/NIGHT/screening.json    put last: it makes the night
RUN/screenings/NIGHT/told.json         that its tripped gates were told
RUN/screenings/index.html              the trend, and a line for each of the last nights

A night that was killed has no screening.json, so that the next one covers what it scored. Nights are told at least
once: a receiver knows one again by its Idempotency-Key.
"""

import gzip
import hashlib
import hmac
import json
import os
import subprocess
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from gradosr.audit import audit, report
from gradosr.audit.groups import group
from gradosr.audit.proportions import difference, wilson
from gradosr.audit.rows import RunTable
from gradosr.audit.tally import count
from gradosr.config import Allowance, AuditSettings, Gates, ScreenJob, Webhook
from gradosr.errors import ConfigError, EmptyTable, NotFound, RunFailed, first_line
from gradosr.progress import Outcome
from gradosr.results import RunFolder
from gradosr.run import Plan, Summary, allowed, finish
from gradosr.store import Store, join

FOLDER, NIGHT, ARCHIVE, TOLD = "screenings", "screening.json", "archive.json.gz", "told.json"
SHOWN = 90  # nights on the index page
MOST_GROUPED = 20_000  # images over the threshold that are grouped
MOSTLY = 0.5  # share of new images from which on a group is new
PAUSE = 1.0  # seconds before the second try of a webhook; doubled before each further one


@dataclass(frozen=True)
class Counts:
    """Of the rows that a night added."""

    rows: int
    images: int
    """With a score."""
    unknown: int

    @property
    def bad(self) -> int:
        """Without a score."""
        return self.rows - self.images


class Seen(NamedTuple):
    """A shard version of the archive."""

    shard: str
    night: str
    """In which it was new."""


@dataclass(frozen=True)
class Verdict:
    """One gate."""

    gate: str
    bound: float
    found: float | None
    """None where there is nothing to measure it on, which `why` says."""
    tripped: bool
    why: str


@dataclass(frozen=True)
class Night:
    """One screening, as screening.json keeps it."""

    night: str
    """Its date, with a number behind it where it is not the date's first."""
    made: str
    """ISO 8601."""
    counts: Counts
    shards: int
    """Of the archive."""
    new_shards: int
    """New or changed since the night before."""
    missing: tuple[str, ...]
    """Shards of the night before that are gone."""
    verdicts: tuple[Verdict, ...]

    @property
    def tripped(self) -> list[Verdict]:
        """The gates to be told of."""
        return [verdict for verdict in self.verdicts if verdict.tripped]

    def document(self) -> dict[str, Any]:
        """screening.json, and what a webhook gets."""
        return {"schema": 1, **asdict(self), "tripped": [verdict.gate for verdict in self.tripped]}

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> "Night":
        """What `document` was made of."""
        facts = {name: document[name] for name in ("night", "made", "shards", "new_shards")}
        return cls(
            **facts,
            counts=Counts(**document["counts"]),
            missing=tuple(document["missing"]),
            verdicts=tuple(Verdict(**verdict) for verdict in document["verdicts"]),
        )


class History:
    """The nights of one results folder, which is listed once: all files of all nights lie there."""

    def __init__(self, store: Store, folder: RunFolder) -> None:
        self._store, self._folder = store, folder

    def nights(self, last: int) -> list[Night]:
        """The last ones, oldest first."""
        return [Night.of(json.loads(self._store.read(self.path(name, NIGHT)))) for name in self._names[-last:]]

    def archive(self) -> dict[str, Seen]:
        """By part, as of the last night; empty before the first."""
        if not self._names:
            return {}
        document = json.loads(gzip.decompress(self._store.read(self.path(self._names[-1], ARCHIVE))))
        return {part: Seen(*seen) for part, seen in document.items()}

    def next_name(self, now: datetime) -> str:
        """Of a night that begins now: in order behind all others."""
        date = now.date().isoformat()
        of_today = [name for name in self._names if name[: len(date)] == date]
        return f"{date}.{len(of_today) + 1:02}" if of_today else date

    def commit(self, night: Night, archive: Mapping[str, Seen]) -> None:
        """Keep a night."""
        self._store.write(self.path(night.night, ARCHIVE), gzip.compress(json.dumps(archive).encode(), mtime=0))
        self._store.write(self.path(night.night, NIGHT), json.dumps(night.document(), indent=2).encode())
        self._names.append(night.night)

    def untold(self, night: Night) -> bool:
        """Whether its tripped gates are still to be told."""
        if not night.tripped:
            return False
        try:
            self._store.read(self.path(night.night, TOLD))
        except NotFound:
            return True
        return False

    def mark_told(self, night: Night) -> None:
        """They were."""
        self._store.write(self.path(night.night, TOLD), b"{}")

    def path(self, *names: str) -> str:
        """URI of something among the screenings."""
        return self._folder.path(FOLDER, *names)

    @cached_property
    def _names(self) -> list[str]:
        start, end = len(self.path("")), f"/{NIGHT}"
        listed = self._store.list(self.path(""))
        try:
            return sorted(stored.uri[start:].removesuffix(end) for stored in listed if stored.uri.endswith(end))
        except NotFound:
            return []  # a local folder that is not there yet


def check(job: ScreenJob) -> None:
    """Raise ConfigError for what can be known to be missing before work starts."""
    if job.webhook:
        _signing_key(job.webhook)


def close(job: ScreenJob, plan: Plan, outcome: Outcome, history: History) -> tuple[Summary, Night | None]:
    """Finish the run, and make a night of what is new in its table; none where shards failed or wait for their turn."""
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
    counts = _audited(job, store, plan.folder.uri, fresh, history.path(name))
    sizes = _new_classes(job, store, plan.folder.uri, fresh, window)
    verdicts = judge(job.gates, counts, before, len(missing), len(seen), sizes)
    night = Night(
        name, now.isoformat(timespec="seconds"), counts, len(plan.shards), len(fresh), tuple(missing), verdicts
    )
    history.commit(night, archive)
    page = report.render_nights(job.output, [one.document() for one in history.nights(SHOWN)])
    store.write(history.path("index.html"), page.encode())
    return summary, night


def tell_all(job: ScreenJob, history: History) -> None:
    """Tell of the last night, and of one before that could not be told. Raises RunFailed where that fails."""
    for night in history.nights(2):
        if (job.webhook or job.command) and history.untold(night):
            tell(job, night)
            history.mark_told(night)


def _audited(job: ScreenJob, store: Store, uri: str, fresh: Collection[str], out_uri: str) -> Counts:
    """Audit these parts into `out_uri`; what they count."""
    settings = AuditSettings(store=job.store, stores=job.stores, fdr=job.fdr)
    with tempfile.TemporaryDirectory() as place:
        out = Path(place)
        try:
            found = audit(store, uri, settings, out=out, only=fresh)
        except EmptyTable:  # a night without new images
            return Counts(0, 0, 0)
        for path in sorted(out.rglob("*")):
            if path.is_file():
                with path.open("rb") as file:
                    store.write(join(out_uri, path.relative_to(out).as_posix()), file)
    return Counts(found["rows"], found["images"], found["unknown"])


def _new_classes(job: ScreenJob, store: Store, uri: str, fresh: Collection[str], window: Collection[str]) -> list[int]:
    """New images of each group that is mostly made of them, among the images over the threshold of both."""
    if job.gates.new_candidate_class is None or not window:
        return []
    try:
        new = RunTable(store, uri, fresh)
        tally = count(RunTable(store, uri, {*fresh, *window}), None, MOST_GROUPED)
    except EmptyTable:
        return []
    shards = set(count(new, None, 0).by_shard)
    groups = group(tally.sample, tally.without_features, None, MOST_GROUPED, new.kind).group_of
    members: defaultdict[str, list[bool]] = defaultdict(list)
    for row in tally.sample.settled()[0]:
        if row["id"] in groups:
            members[groups[row["id"]]].append(row["shard"] in shards)
    return [sum(of_now) for of_now in members.values() if sum(of_now) > MOSTLY * len(of_now)]


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


# Telling


def tell(job: ScreenJob, night: Night) -> None:
    """To the webhook and the command of the job. Raises ConfigError without a key, RunFailed when neither hears it."""
    body = json.dumps({"output": job.output, **night.document()}).encode()
    if job.webhook:
        _post(job.webhook, body, f"{job.output}#{night.night}")
    if job.command:
        try:
            subprocess.run(job.command, input=body, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - the user's own
        except (OSError, subprocess.CalledProcessError) as error:
            raise RunFailed(
                f"command {job.command[0]}: {first_line(error)}; the next screening runs it again"
            ) from error


def _signing_key(webhook: Webhook) -> bytes | None:
    """Of the environment. Raises ConfigError where it is named and not there: to be asked before work starts."""
    if webhook.key_env is None:
        return None
    key = os.environ.get(webhook.key_env)
    if not key:
        raise ConfigError(f"webhook.key_env: the environment has no {webhook.key_env}")
    return key.encode()


def _post(webhook: Webhook, body: bytes, identity: str) -> None:
    headers = {"Content-Type": "application/json", "Idempotency-Key": hashlib.sha256(identity.encode()).hexdigest()}
    if key := _signing_key(webhook):
        headers["X-Gradosr-Signature"] = f"sha256={hmac.new(key, body, hashlib.sha256).hexdigest()}"
    request = urllib.request.Request(webhook.url, body, headers)  # noqa: S310 - http or https by its pattern
    for attempt in range(webhook.attempts):
        try:
            with urllib.request.urlopen(request, timeout=webhook.timeout):  # noqa: S310
                return
        except OSError as error:
            told = first_line(error)
            if attempt + 1 < webhook.attempts:
                time.sleep(PAUSE * 2**attempt)
    where = webhook.url.partition("?")[0]
    raise RunFailed(f"webhook {where}: {told} ({webhook.attempts} times); the next screening tells it again")
