"""What a person sees while a job runs, on stderr: a live display on a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from gradosr.parts import STATUSES
from gradosr.progress import Progress
from gradosr.run import Summary

PLAIN_INTERVAL = 5.0
"""Seconds between lines where there is no terminal."""


SHOWN = 10
"""Shards named in a summary."""


def printable(text: str) -> str:
    """Text from data made harmless for a terminal: control characters shown, not obeyed."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class Notes:
    """Lines that stay (`say`) and a line that is replaced by the next (`step`)."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._status: Status | None = None
        self._last = 0.0

    def __enter__(self) -> "Notes":
        if self._console.is_terminal:
            self._status = self._console.status("starting")
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status:
            self._status.stop()

    def say(self, text: str) -> None:
        """Lines that stay."""
        for one in text.splitlines():
            self._console.print(escape(printable(one)))

    def step(self, text: str) -> None:
        """Where the work stands; without a terminal at most one line every few seconds."""
        if self._status:
            self._status.update(escape(printable(text)))
        elif time.monotonic() - self._last >= PLAIN_INTERVAL:
            self._last = time.monotonic()
            self.say(text)

    def progress(self, progress: Progress) -> None:
        """`step` with a run's progress."""
        self.step(line(progress))


def line(progress: Progress) -> str:
    """A run's progress in one line."""
    rows, ok = progress.counts["rows"], progress.counts["ok"]
    seconds = max(progress.seconds, 1e-9)
    parts = [f"shards {progress.done}/{progress.total}", f"images {rows:,} ({rows / seconds:,.0f}/s)"]
    if ok:
        parts.append(f"unknown {progress.counts['unknown'] / ok:.1%}")
    if rows > ok:
        parts.append(f"bad images {rows - ok:,}")
    if progress.done:
        parts.append(f"ETA {duration(seconds / progress.done * (progress.total - progress.done))}")
    parts.append(f"workers {progress.workers}")
    return " | ".join(parts)


def duration(seconds: float) -> str:
    """M:SS, or H:MM:SS."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def plan_report(facts: Mapping[str, Any]) -> str:
    """What a run would do, for people."""
    done = facts["shards"] - facts["pending_shards"]
    return "\n".join(
        [
            f"output       {facts['output']}",
            f"archive      {facts['shards']:,} shards, {facts['bytes']:,} bytes",
            f"done         {done:,} shards",
            f"to be done   {facts['pending_shards']:,} shards, {facts['pending_bytes']:,} bytes",
            *(f"  {key}: {value}" for key, value in facts["fingerprint"].items()),
        ]
    )


def summary_report(summary: Summary) -> str:
    """What a run left, for people: one line, and one more for each shard without results."""
    counts = summary.counts
    rows, ok = counts.get("rows", 0), counts.get("ok", 0)
    head = f"{summary.scored} shards scored now" if summary.scored else "nothing left to score"
    bad = ", ".join(f"{counts[status]:,} {status}" for status in STATUSES[1:] if counts.get(status))
    lines = [
        f"{head}; {summary.output} holds {rows:,} rows of {summary.shards:,} shards: "
        f"{ok:,} scored, {counts.get('unknown', 0):,} unknown" + (f", {bad}" if bad else "")
    ]
    if summary.superseded:
        lines.append(f"{summary.superseded} outdated parts moved to superseded/")
    lines += [f"quarantined: {name} (reason in quarantine/)" for name in summary.quarantined[:SHOWN]]
    lines += [f"failed: {name}: {reason}" for name, reason in list(summary.failed.items())[:SHOWN]]
    hidden = max(0, len(summary.quarantined) - SHOWN) + max(0, len(summary.failed) - SHOWN)
    if hidden:
        lines.append(f"... and {hidden} more")
    if summary.failed:
        lines.append("the table is not whole; the same command tries the failed shards again")
    return "\n".join(lines)
