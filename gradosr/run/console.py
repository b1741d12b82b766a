"""Messages of a running job on stderr: a live display on a terminal, else a line now and then, or a JSON log.

Names of shards and reasons come from data: in text their control characters are escaped, and JSON escapes them anyway.
Rich draws the display and is imported only for that, so a machine without a terminal can do without it.
"""

import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from gradosr.archive.names import listed
from gradosr.results.outcome import SHOWN, Progress
from gradosr.results.part import STATUSES
from gradosr.run.plan import Summary
from gradosr.text import duration, log_line, plural, printable

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.status import Status
WINDOW = 60.0
"""Seconds over which the rate of the last minute is averaged."""
SHOWN_EVERY = 0.5
"""Seconds between two counts of images that a Meter shows."""


class Notes:
    """The sink of all messages of a job: lines that stay, and the current state of the work.

    On a terminal the state is a display that is replaced by each new one. Elsewhere it is a line every `interval`
    seconds; the first comes at once, and another when the first images are scored. With `as_json` every line is a JSON
    object in the form of `log_line`.
    """

    def __init__(self, stream: TextIO | None = None, interval: float = 30.0, *, as_json: bool = False) -> None:
        """Create a sink that writes to `stream`, or to stderr if none is given."""
        self._stream = stream or sys.stderr
        self._interval, self._as_json = interval, as_json
        self._status: Status | None = None
        self._last, self._any_done, self._shards_named = -interval, False, 0
        self._pace = _Pace()

    def __enter__(self) -> "Notes":
        if self._stream.isatty() and not self._as_json:
            from rich.console import Console

            self._status = Console(file=self._stream, highlight=False, soft_wrap=True).status("starting")
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status:
            self._status.stop()
            self._status = None

    def say(self, text: str) -> None:
        """Write lines that stay."""
        self._tell("note", text)

    def warn(self, text: str) -> None:
        """Write lines that stay, as a warning of a problem that does not end the work."""
        self._tell("warning", text, "warning")

    def lost(self, shard: str, fate: str, reason: str) -> None:
        """Report a shard that yields no part: `fate` is failed or quarantined.

        A text log names only the first few, as does the summary.
        """
        self._shards_named += 1
        if self._as_json or self._shards_named <= SHOWN:
            self._tell(fate, f"{fate}: {printable(shard)}: {printable(reason)}", "warning", shard=shard, reason=reason)

    def step(self, text: str) -> None:
        """Show the current step of the work."""
        if self._status:
            from rich.text import Text

            self._status.update(Text(printable(text)))
        elif self._is_due():
            self._tell("step", text)

    def progress(self, progress: Progress) -> None:
        """Show the progress of a run; to be called often."""
        recent, begun = self._pace(progress.seconds, progress.images), progress.images + progress.done > 0
        if self._status:
            self._status.update(_display(progress, recent))
        elif self._is_due(at_once=begun and not self._any_done):
            self._tell("progress", line(progress, recent), **_facts(progress, recent))
        self._any_done |= begun

    def summary(self, summary: Summary) -> None:
        """Write the summary of a run."""
        level = "error" if summary.failed else "warning" if summary.exceeded else "info"
        lengths = {"failed": len(summary.failed), "quarantined": len(summary.quarantined)}  # each was reported
        self._tell("summary", summary_report(summary), level, **{**asdict(summary), **lengths})

    def _is_due(self, *, at_once: bool = False) -> bool:
        now = time.monotonic()
        due = at_once or now - self._last >= self._interval
        self._last = now if due else self._last
        return due

    def _tell(self, event: str, text: str, level: str = "info", **facts: Any) -> None:
        lines = [log_line(event, text, level, **facts)] if self._as_json else map(printable, text.splitlines())
        for one in lines:
            if self._status:
                self._status.console.out(one, highlight=False)
            else:
                self._stream.write(f"{one}\n")
        self._stream.flush()


class Meter:
    """A count of images that shows their rate as the current step, from the first second on."""

    def __init__(self, notes: Notes, what: str, total: int | None = None) -> None:
        """Begin to count; `what` names the step, and may be changed."""
        self.what, self._notes, self._total = what, notes, total
        self._start = self._shown = time.monotonic()
        self._images = 0

    def add(self, images: int = 1) -> None:
        """Count images, and show the count if it was not shown just now."""
        self._images += images
        now = time.monotonic()
        if now - self._shown >= SHOWN_EVERY:
            self._shown = now
            self._notes.step(self.text(now - self._start))

    def text(self, seconds: float) -> str:
        """Format the count after so many seconds."""
        rate = self._images / max(seconds, 1e-9)
        if self._total is None:
            return f"{self.what}: {plural(self._images, 'image')} ({_rate(rate)})"
        left = duration((self._total - self._images) / rate) if rate else "unknown"
        return f"{self.what}: {self._images:,} of {plural(self._total, 'image')} ({_rate(rate)}), ETA {left}"


class _Pace:
    """A meter of images per second over the last WINDOW seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def __call__(self, seconds: float, rows: int) -> float | None:
        """Return the rate of a run with `rows` rows after `seconds`; None while the run is younger than the window."""
        if not self._seen or seconds - self._seen[-1][0] >= 1:
            self._seen.append((seconds, rows))
        while len(self._seen) > 1 and self._seen[1][0] <= seconds - WINDOW:
            self._seen.popleft()
        then, before = self._seen[0]
        return (rows - before) / (seconds - then) if seconds - then >= WINDOW else None


def line(progress: Progress, recent: float | None = None) -> str:
    """Format a run's progress in one line; `recent` is in images per second."""
    rows, ok = progress.counts["rows"], progress.counts["ok"]
    lately = "" if recent is None else f", last minute {_rate(recent)}"
    images = f"images {progress.images:,} ({_rate(_average(progress))}{lately})"
    parts = [f"shards {progress.done:,}/{progress.total:,}", images]
    if ok:
        parts.append(f"over the threshold {progress.counts['unknown'] / ok:.1%}")
    if rows > ok:
        parts.append(f"bad images {rows - ok:,}")
    parts += [f"{fate} {n:,}" for fate, n in (("failed", progress.failed), ("quarantined", progress.quarantined)) if n]
    if progress.remaining is not None:
        parts.append(f"ETA {duration(progress.remaining)}")
    parts.append(f"workers {progress.workers}")
    return " | ".join(parts)


def _facts(progress: Progress, recent: float | None) -> dict[str, Any]:
    """Return a run's progress as plain data, for programs."""
    return {
        **progress.facts(),
        "images_per_second": round(_average(progress), 1),
        "images_per_second_last_minute": None if recent is None else round(recent, 1),
        "eta_seconds": None if progress.remaining is None else round(progress.remaining, 1),
    }


def _display(progress: Progress, recent: float | None) -> "RenderableType":
    """Return a progress bar above the progress line."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    bar = Table.grid(padding=(0, 1))
    bar.add_row(ProgressBar(total=1.0, completed=progress.share, width=40), f"{progress.share:.0%}")
    return Group(bar, line(progress, recent))


def _average(progress: Progress) -> float:
    return progress.images / max(progress.seconds, 1e-9)


def _rate(per_second: float) -> str:
    return f"{per_second:,.0f}/s" if per_second >= 10 else f"{per_second:.1f}/s"


def plan_report(facts: Mapping[str, Any]) -> str:
    """Format the plan of a run for people."""
    done = facts["shards"] - facts["pending_shards"]
    found = facts.get("estimate")
    return "\n".join(
        [
            f"output       {facts['output']}",
            f"archive      {plural(facts['shards'], 'shard')}, {plural(facts['bytes'], 'byte')}",
            f"done         {plural(done, 'shard')}",
            f"to be done   {plural(facts['pending_shards'], 'shard')}, {plural(facts['pending_bytes'], 'byte')}",
            *(_estimate_lines(found) if found else ()),
            *(f"  {key}: {value}" for key, value in facts["fingerprint"].items()),
        ]
    )


def _estimate_lines(found: Mapping[str, Any]) -> list[str]:
    cost = "" if found["cost"] is None else f", cost {found['cost']:,.2f}"
    return [
        f"estimate     {plural(found['images'], 'image')}, {duration(found['seconds'])} by "
        f"{plural(found['workers'], 'worker')} of "
        f"{_rate(found['images_per_second'])} each{cost}",
        f"             from {plural(found['sample_images'], 'image')} of {plural(found['sample_shards'], 'shard')} "
        "scored here on "
        f"{found['device']}; the start of Ray and of the workers is not included",
        *([_wide(found)] if found["wide_bytes"] else ()),
    ]


def _wide(found: Mapping[str, Any]) -> str:
    everything = found["wide_bytes"] * found["images"] / 1e9
    return (
        f"stored       {found['wide_bytes']:,} bytes for each image whose signals, features, embedding or "
        f"representation are kept ({everything:,.1f} GB if all are), before compression"
    )


_PASSED_OVER = {
    "members": ("member is no image", "members are no images"),
    "objects": ("other object of the input was left out", "other objects of the input were left out"),
}


def summary_report(summary: Summary) -> str:
    """Format the summary of a run for people: one line, and one more for each shard without results."""
    counts = summary.counts
    rows, ok = counts.get("rows", 0), counts.get("ok", 0)
    head = f"{plural(summary.scored, 'shard')} scored now" if summary.scored else "nothing left to score"
    bad = ", ".join(f"{counts[status]:,} {status}" for status in STATUSES[1:] if counts.get(status))
    lines = [
        f"{head}; {printable(summary.output)} holds {plural(rows, 'row')} of {plural(summary.shards, 'shard')}: "
        f"{ok:,} scored, {counts.get('unknown', 0):,} over the threshold" + (f", {bad}" if bad else "")
    ]
    for what, text in _PASSED_OVER.items():
        if kinds := summary.passed_over.get(what):
            lines.append(f"{plural(sum(kinds.values()), *text)}: {listed(kinds)}")
    if summary.superseded:
        lines.append(f"{plural(summary.superseded, 'outdated part')} moved to superseded/")
    lines += [f"quarantined: {printable(name)} (reason in quarantine/)" for name in summary.quarantined[:SHOWN]]
    failed = list(summary.failed.items())[:SHOWN]
    lines += [f"failed: {printable(name)}: {printable(reason)}" for name, reason in failed]
    hidden = max(0, len(summary.quarantined) - SHOWN) + max(0, len(summary.failed) - SHOWN)
    if hidden:
        lines.append(f"... and {hidden:,} more")
    if summary.interrupted:
        lines.append("ended early: the table is not whole")
    if summary.failed:
        lines.append("the table is not whole; the same command tries the failed shards again")
    lines += [
        f"over {over.bound}: {over.found:,} of {over.total:,}, allowed are {over.allowed:,}, "
        f"that is {over.found - over.allowed:,} too many"
        for over in summary.exceeded
    ]
    return "\n".join(lines)
