"""The plan of a scoring run and its conclusion, without Ray or torch: what is pending, and what remains at the end."""

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from gradosr.archive.groups import Record, Regrouped
from gradosr.archive.image import decoder, resolve_names
from gradosr.archive.readers import READERS
from gradosr.archive.shards import Shard, means
from gradosr.bundle.manifest import Manifest, check_precision, read_manifest
from gradosr.classifier.sources import identity
from gradosr.config import LIBRARIES, Allowance, ResultsInput, ScoreJob
from gradosr.errors import ConfigError, InputError
from gradosr.results.folder import BAD_IMAGES, MARK, PART, Listing, RunFolder
from gradosr.results.outcome import Outcome
from gradosr.results.part import SCHEMA_VERSION
from gradosr.results.rescored import fingerprint_after, parts_of
from gradosr.results.stats import TableStats
from gradosr.run.attempts import Attempts
from gradosr.store import Store
from gradosr.versions import software


@dataclass
class Plan:
    """A run that is ready to start; nothing has been written yet."""

    job: ScoreJob
    folder: RunFolder
    fingerprint: dict[str, Any]
    manifest: Manifest
    """Manifest of the bundle."""
    shards: Sequence[Shard]
    """All shards of the archive, in listing order."""
    groups: Regrouped
    """Groups of single images that are to be recorded before they are read."""
    passed_over: Mapping[str, int]
    """Number of objects of the input that are neither shards nor images, by kind."""
    listing: Listing
    pending: Sequence[Shard]
    """Shards without a part or a quarantine mark."""

    def claim(self) -> None:
        """Claim the output folder for this run, and mark its table as changing.

        Raises FingerprintMismatch or RunFailed if another driver was first, StoreError if the folder cannot be written.
        """
        if not self.listing.claimed:
            self.folder.claim(self.fingerprint, self._about())
        if self.pending or not self.listing.claimed:
            self.folder.record_config(self.job)
        if pieces := self.folder.record_groups(self.listing, self.groups):
            self.pending = [replace(one, piece=pieces.get(one.piece, one.piece)) for one in self.pending]
        if self.pending and self.listing.finished:
            self.folder.reopen()

    def _about(self) -> dict[str, Any]:
        """Return the content of run.json beside the fingerprint, which covers it through the bundle's digest."""
        manifest = self.manifest
        summary = manifest.calibrations.get(self.fingerprint["precision"], manifest.calibration)
        facts = manifest.model_dump(mode="json", include={"classes", "false_alarm_rate"})
        calibration = summary and summary.model_dump(mode="json")
        learned = {"learned": manifest.learned_from} if manifest.learned_from else {}
        origin = {"bundle": self.job.bundle, "observer": manifest.observer, "software": software()}
        return {**facts, **learned, "calibration": calibration, **origin}

    def facts(self) -> dict[str, Any]:
        """Return the plan as plain data."""
        return {
            "output": self.folder.uri,
            "shards": len(self.shards),
            "bytes": sum(shard.size for shard in self.shards),
            "pending_shards": len(self.pending),
            "pending_bytes": sum(shard.size for shard in self.pending),
            "fingerprint": self.fingerprint,
        }


@dataclass(frozen=True)
class Exceeded:
    """A bound of the job that the table as a whole exceeds."""

    bound: str
    """Name of the bound: max_bad_images or max_bad_shards."""
    found: int
    total: int
    """Number of all images, or of all shards in the archive."""
    allowed: int


@dataclass
class Summary:
    """The result of a run."""

    output: str
    shards: int
    scored: int
    """Number of shards scored by this run."""
    counts: dict[str, int]
    """Counts of the whole table: rows, unknown, and one per status."""
    seconds: dict[str, float]
    """Seconds by stage for the whole table, added up over all workers."""
    superseded: int
    """Number of parts moved out of the table."""
    quarantined: tuple[str, ...]
    failed: dict[str, str]
    """The reason for each failed shard, by shard name."""
    interrupted: bool
    """True if the run was asked to end before every shard had been tried."""
    exceeded: tuple[Exceeded, ...] = ()
    """Bounds that were exceeded; filled in only if the table is whole."""
    passed_over: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Numbers of what was left out, by kind: `members` of shards, and `objects` of the input."""


def prepare(job: ScoreJob) -> Plan:
    """Check everything that can be checked before work starts, and list the archive; nothing is written.

    Raises ConfigError or InputError that lists every fault, one per line.
    """
    store = Store(job.store, job.stores)
    folder = RunFolder(store, job.output)
    attempt = Attempts(store)
    job, bundle, listing = _look(job, store, folder, attempt)
    skipped = listing.parts | (set() if job.retry_quarantined else listing.quarantined)
    listed = attempt(job.input.uri, lambda: _shards(job, store, folder, listing, skipped))
    if attempt.faults or bundle is None or listed is None:
        raise attempt.fault()
    manifest, fingerprint = bundle
    if listing.claimed:
        folder.check(fingerprint)
    pending = [shard for shard in listed[0] if shard.part not in skipped]
    return Plan(job, folder, fingerprint, manifest, *listed, listing, pending)


def check(job: ScoreJob) -> dict[str, Any]:
    """Check what `prepare` checks, except for listing the archive, which takes long from afar; return the fingerprint.

    Raises ConfigError or InputError that lists every fault, one per line.
    """
    store = Store(job.store, job.stores)
    folder = RunFolder(store, job.output)
    attempt = Attempts(store)
    job, bundle, listing = _look(job, store, folder, attempt)
    if attempt.faults or bundle is None:
        raise attempt.fault()
    _, fingerprint = bundle
    if listing.claimed:
        folder.check(fingerprint)
    return fingerprint


def _look(
    job: ScoreJob, store: Store, folder: RunFolder, attempt: Attempts
) -> tuple[ScoreJob, tuple[Manifest, dict[str, Any]] | None, Listing]:
    """Return the job as its run was begun, the bundle's manifest and the run's fingerprint, and the listing."""
    names = job.input.label_names
    listing = attempt(job.output, folder.look) or Listing()
    begun = (attempt(job.output, lambda: _as_begun(job, folder)) or job) if listing.claimed else job
    bundle = attempt(job.bundle, lambda: _usable(begun, store))
    if bundle is not None and (embedder := begun.embedder) is not None:
        made_of = attempt(embedder.weights or embedder.folder or job.bundle, lambda: identity(embedder, store))
        bundle[1]["embedder"] = made_of
    attempt(names if isinstance(names, str) else job.input.uri, lambda: resolve_names(names, store))
    return begun, bundle, listing


def _as_begun(job: ScoreJob, folder: RunFolder) -> ScoreJob:
    """Return the job with `features: none` if its run was begun so by default, as it was before; it goes on so."""
    says_nothing = type(job) is ScoreJob and "features" not in job.model_fields_set
    begun_without = says_nothing and folder.fingerprint().get("features") == "none"
    return job.model_copy(update={"features": "none"}) if begun_without else job


def _usable(job: ScoreJob, store: Store) -> tuple[Manifest, dict[str, Any]]:
    manifest, digest = read_manifest(store, job.bundle)
    if isinstance(job.input, ResultsInput):
        return manifest, fingerprint_after(store, job.input.uri, job.bundle, manifest, digest)
    source = manifest.arch.partition(":")[0]
    if source not in LIBRARIES and manifest.arch not in job.trust:
        raise ConfigError(
            f"{job.bundle}: its architecture {manifest.arch} is code of its own; "
            f"to import it, say so: --trust {manifest.arch}, or `trust: [{manifest.arch}]` in a config"
        )
    check_precision(job.precision, manifest.precisions)
    return manifest, fingerprint_of(job, manifest, digest)


def _shards(
    job: ScoreJob, store: Store, folder: RunFolder, listing: Listing, settled: Container[str]
) -> tuple[list[Shard], Regrouped, dict[str, int]]:
    if isinstance(job.input, ResultsInput):
        return parts_of(store, job.input.uri), Regrouped(), {}
    passed_over = Counter[str]()
    record = Record(folder.recorded_groups(listing), settled)
    shards, groups = READERS[job.input.kind].find(job.input, store, record, passed_over)
    written = ("parts/part.parquet", "screenings/night/images/id.jpg")
    if any(means(job.input, folder.path(name), store) for name in written):
        raise ConfigError(f"output {folder.uri}: lies inside the input, so that results would be scored as images")
    if not listing.parts:  # existing parts show that the settings fit, so a night reads no old shard
        _check_samples(job, store, shards)
    return shards, groups, dict(passed_over)


def _check_samples(job: ScoreJob, store: Store, shards: Sequence[Shard]) -> None:
    """Raise InputError if the settings fit none of three sample shards, which indicates a mistake in the config.

    A single bad shard is quarantined when its turn comes.
    """
    samples = {0, len(shards) // 2, len(shards) - 1}
    faults: list[InputError] = []
    for index in sorted(samples):
        try:
            READERS[job.input.kind].check(shards[index], store, job.input)
        except InputError as error:
            faults.append(error)
    if len(faults) == len(samples):
        raise faults[0]


def fingerprint_of(job: ScoreJob, manifest: Manifest, digest: str) -> dict[str, Any]:
    """Return everything that a run's scores depend on; all runs in one folder have the same fingerprint."""
    return {
        "schema_version": SCHEMA_VERSION,
        "bundle": digest,
        "input": job.input.model_dump(mode="json", exclude={"group_size"}),
        "transform": manifest.transform.model_dump(mode="json"),
        "decoder": decoder(),
        "max_pixels": job.max_pixels,
        "precision": job.precision,
        "features": job.features,
        "representation": job.representation,
        **({} if job.signals == "none" else job.model_dump(mode="json", include={"signals"})),
    }


def finish(plan: Plan, outcome: Outcome) -> Summary:
    """Bring the table in line with the archive as listed.

    _SUCCESS is written last, and only if every shard has a part or a quarantine mark.
    """
    folder, listing, current = plan.folder, plan.listing, {shard.part for shard in plan.shards}
    parts = {part for part in current if part in listing.parts or part in outcome.scored}
    stats = folder.stats(parts, outcome.scored)
    marks = ((listing.quarantined | set(outcome.quarantined)) & current) - parts
    outdated = {
        ("parts", PART): listing.parts - current,
        ("quarantine", MARK): listing.quarantined - marks,
        ("quarantine", BAD_IMAGES): listing.bad_images - stats.with_bad_images(),
    }
    whole = not (outcome.failed or outcome.interrupted)
    summary = _summary(plan, outcome, stats, marks, len(outdated["parts", PART]) if whole else 0)
    if listing.finished and not plan.pending and not any(outdated.values()):
        return summary  # nothing to do, so nothing is written
    if whole:
        for (place, ending), names in outdated.items():
            folder.supersede(place, names, ending)
    document = {
        "shards": summary.shards,
        "counts": summary.counts,
        "seconds": summary.seconds,
        "images_per_second": _rates(summary),
        "passed_over": summary.passed_over,
        "quarantined": sorted(marks),
        "failed": outcome.failed,
    }
    folder.finish(document, stats, success=whole)
    return summary


def _summary(plan: Plan, outcome: Outcome, stats: TableStats, marks: set[str], superseded: int) -> Summary:
    counts = stats.counts()
    return Summary(
        output=plan.folder.uri,
        shards=len(plan.shards),
        scored=len(outcome.scored),
        counts=counts,
        seconds={stage: round(spent, 4) for stage, spent in stats.seconds().items()},
        superseded=superseded,
        quarantined=tuple(shard.name for shard in plan.shards if shard.part in marks),
        failed=outcome.failed,
        interrupted=outcome.interrupted,
        exceeded=() if outcome.failed or outcome.interrupted else _exceeded(plan, counts, len(marks)),
        passed_over={"members": stats.passed_over(), "objects": dict(plan.passed_over)},
    )


def _rates(summary: Summary) -> dict[str, float]:
    """Return the images per second of one worker (decode: of one thread) in each stage; the lowest limits the run."""
    return {stage: round(summary.counts["rows"] / spent, 1) for stage, spent in summary.seconds.items() if spent}


def _bad(counts: Mapping[str, int]) -> int:
    """Return the number of images without a score."""
    return counts.get("rows", 0) - counts.get("ok", 0)


def _exceeded(plan: Plan, counts: Mapping[str, int], quarantined: int) -> tuple[Exceeded, ...]:
    """Return the bounds exceeded by the table as a whole, so that a finished run keeps its exit code when repeated."""
    rows, shards = counts.get("rows", 0), len(plan.shards)
    images = Exceeded("max_bad_images", _bad(counts), rows, allowed(plan.job.max_bad_images, rows))
    marks = Exceeded("max_bad_shards", quarantined, shards, allowed(plan.job.max_bad_shards, shards))
    return tuple(bound for bound in (images, marks) if bound.found > bound.allowed)


def allowed(allowance: Allowance, total: int) -> int:
    """Return how many of `total` are allowed, computing shares in decimal.

    0.58 of 50 is 29, whereas binary fractions give 28.99.
    """
    return allowance if isinstance(allowance, int) else int(Decimal(str(allowance)) * total)
