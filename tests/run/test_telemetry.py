"""Messages to a person: safe, short and true."""

import io
import json
import time
from collections import Counter
from datetime import datetime
from typing import Any

import pytest

from gradosr.results.outcome import Progress, Underway
from gradosr.run.console import SHOWN, WINDOW, Meter, Notes, line, summary_report
from gradosr.run.plan import Exceeded, Summary
from gradosr.text import plural, printable

HOSTILE = "a\x1b[2J\n[bold]\u202e:skull:.tar"


def logging_notes(interval: float = 30.0, *, as_json: bool = False) -> tuple[Notes, io.StringIO]:
    """Notes as they are where stderr is no terminal."""
    out = io.StringIO()
    return Notes(out, interval, as_json=as_json), out


def summary(**changes: Any) -> Summary:
    facts: dict[str, Any] = {
        "output": "out", "shards": 12, "scored": 10, "counts": {"rows": 10, "ok": 8, "unknown": 1, "empty": 2},
        "seconds": {"read": 1.0}, "superseded": 0, "quarantined": (), "failed": {}, "interrupted": False,
    }  # fmt: skip
    return Summary(**facts | changes)


def test_control_characters_are_shown_not_obeyed() -> None:
    assert printable("a\x1b[31mred\r\n\u202e") == "a\\x1b[31mred\\r\\n\\u202e"
    assert printable("Größe 漢字") == "Größe 漢字"
    assert printable("95\u00a0% of 6\u00a0images") == "95 % of 6 images"


def test_a_line_says_where_the_run_stands() -> None:
    counts = Counter(rows=1200, ok=1000, unknown=50, truncated=200)
    progress = Progress(total=40, done=10, workers=2, counts=counts, first_ready=time.monotonic() - 10)
    text = line(progress)
    assert "shards 10/40" in text
    assert "images 1,200 (120/s)" in text
    assert "over the threshold 5.0%" in text
    assert "bad images 200" in text
    assert "ETA 0:30" in text
    assert "workers 2" in text
    assert "failed" not in text
    progress.failed, progress.quarantined = 3, 1_200
    assert "failed 3 | quarantined 1,200" in line(progress)


def test_the_time_to_go_is_reckoned_by_bytes_where_they_are_known() -> None:
    """Nine of ten shards are done, but the last one is as large as all of them."""
    progress = Progress(total=10, done=9, first_ready=time.monotonic() - 60, total_bytes=1800, done_bytes=900)
    assert progress.share == 0.5
    assert "ETA 1:00" in line(progress)
    assert Progress(total=10, done=9, first_ready=time.monotonic() - 9).remaining == pytest.approx(1, abs=0.1)
    assert Progress(total=10).remaining is None
    assert Progress(total=0).share == 1


def test_the_rate_of_the_last_minute_stands_beside_the_average() -> None:
    """100 images/s for four minutes, then 20/s for two."""
    notes, out = logging_notes(interval=0)
    for second in range(0, 361, 5):
        rows = 100 * min(second, 240) + 20 * max(0, second - 240)
        progress = Progress(total=9, done=1, counts=Counter(rows=rows), first_ready=time.monotonic() - second)
        notes.progress(progress)
    lines = out.getvalue().splitlines()
    assert "last minute" not in lines[int(WINDOW) // 5 - 1]
    assert "(73/s, last minute 20/s)" in lines[-1]


def test_without_a_terminal_steps_are_rare_plain_lines() -> None:
    notes, out = logging_notes()
    with notes:
        for i in range(1000):
            notes.step(f"step {i}")
        notes.say("done [bold] :skull:")
    assert out.getvalue() == "step 0\ndone [bold] :skull:\n"


def test_a_log_gets_a_line_when_the_first_shard_is_done_and_then_every_interval() -> None:
    notes, out = logging_notes()
    notes.step("starting Ray")
    for done in (0, 0, 1, 2, 3):
        notes.progress(Progress(total=9, done=done))
    assert [text.split(" |")[0] for text in out.getvalue().splitlines()] == ["starting Ray", "shards 1/9"]


def test_images_of_unfinished_shards_count_from_the_first_on() -> None:
    progress = Progress(total=2, workers=2, total_bytes=1000, first_ready=time.monotonic() - 10)
    notes, out = logging_notes()
    notes.progress(progress)
    progress.underway = {"a": Underway(200, 240), "b": Underway(30, 10)}
    notes.progress(progress)
    first, second = out.getvalue().splitlines()
    assert "shards 0/2 | images 0 (0.0/s) | workers 2" in first
    assert "shards 0/2 | images 230 (23/s) | ETA 0:30 | workers 2" in second
    assert (progress.share, progress.facts()["underway"], progress.facts()["rows"]) == (0.25, 230, 0)


def test_a_meter_shows_images_and_their_rate_in_the_first_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("gradosr.run.console.time.monotonic", lambda: now[0])
    notes, out = logging_notes(interval=0)
    reading, observing = Meter(notes, "reading"), Meter(notes, "observing", 100)
    for meter, images in ((reading, 1), (observing, 50), (reading, 1)):
        now[0] += 0.4
        meter.add(images)
    assert out.getvalue().splitlines() == ["observing: 50 of 100 images (62/s), ETA 0:01", "reading: 2 images (1.7/s)"]


def test_one_is_not_said_as_many() -> None:
    assert (plural(1, "shard"), plural(0, "shard"), plural(2000, "class", "classes")) == (
        "1 shard", "0 shards", "2,000 classes",
    )  # fmt: skip
    one = summary(shards=1, scored=1, counts={"rows": 1, "ok": 1}, superseded=1, passed_over={"objects": {"txt": 1}})
    assert summary_report(one).splitlines() == [
        "1 shard scored now; out holds 1 row of 1 shard: 1 scored, 0 over the threshold",
        "1 other object of the input was left out: 1 txt",
        "1 outdated part moved to superseded/",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_a_bar_and_the_facts_and_lines_that_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    with Notes(out) as notes:
        notes.step(HOSTILE)
        notes.progress(Progress(total=40, done=10, workers=2, failed=1, counts=Counter(rows=9, ok=9, unknown=3)))
        notes.warn(HOSTILE)
    text = out.getvalue()
    assert "25%" in text
    assert "shards 10/40 | images 9" in text
    assert "over the threshold 33.3% | failed 1" in text
    assert "\x1b[2J" not in text
    assert "\u202e" not in text
    assert "a\\x1b[2J\n" in text.replace("\r", "")


def test_a_json_log_is_one_object_a_line() -> None:
    notes, out = logging_notes(interval=0, as_json=True)
    with notes:
        notes.step("starting Ray")
        notes.progress(Progress(total=40, done=10, workers=2, counts=Counter(rows=9, ok=8, unknown=2)))
        notes.warn("no node has a GPU\nfree are 0")
        notes.lost(HOSTILE, "failed", "reset\x1b[31m")
        notes.summary(summary(failed={HOSTILE: "reset"}))
        notes.summary(summary(exceeded=(Exceeded("max_bad_images", 2, 10, 1),)))
        notes.summary(summary())
    text = out.getvalue()
    assert text.isascii()
    assert "\x1b" not in text
    events = [json.loads(one) for one in text.splitlines()]
    assert all(datetime.fromisoformat(event["time"]).utcoffset() is not None for event in events)
    assert [(event["event"], event["level"]) for event in events] == [
        ("step", "info"), ("progress", "info"), ("warning", "warning"), ("failed", "warning"), ("summary", "error"),
        ("summary", "warning"), ("summary", "info"),
    ]  # fmt: skip
    progress, lost, over = events[1], events[3], events[5]
    assert (progress["done"], progress["pending_shards"], progress["rows"], progress["unknown"]) == (10, 40, 9, 2)
    assert {"images_per_second", "eta_seconds", "failed", "quarantined", "workers"} <= set(progress)
    assert (lost["shard"], lost["reason"]) == (HOSTILE, "reset\x1b[31m")
    assert over["exceeded"] == [{"bound": "max_bad_images", "found": 2, "total": 10, "allowed": 1}]
    assert (events[4]["failed"], events[4]["counts"]["rows"]) == (1, 10)


def test_lost_shards_are_named_as_they_are_lost_but_never_flood_a_text_log() -> None:
    notes, out = logging_notes()
    for i in range(100):
        notes.lost(f"{i}{HOSTILE}", "quarantined", "not a tar")
    lines = out.getvalue().splitlines()
    assert len(lines) == SHOWN
    assert lines[0] == "quarantined: 0a\\x1b[2J\\n[bold]\\u202e:skull:.tar: not a tar"


def test_a_summary_names_what_is_missing() -> None:
    text = summary_report(
        summary(superseded=3, quarantined=("a.tar",), failed={f"b{i}.tar": "reset" for i in range(12)})
    )
    lines = text.splitlines()
    assert lines[0] == "10 shards scored now; out holds 10 rows of 12 shards: 8 scored, 1 over the threshold, 2 empty"
    assert "3 outdated parts moved to superseded/" in lines
    assert "quarantined: a.tar (reason in quarantine/)" in lines
    assert "failed: b0.tar: reset" in lines
    assert "... and 2 more" in lines
    assert lines[-1].startswith("the table is not whole")


def test_a_summary_says_which_bound_was_passed_and_by_how_much() -> None:
    over = (Exceeded("max_bad_images", 2, 10, 0), Exceeded("max_bad_shards", 3, 12, 1))
    assert summary_report(summary(exceeded=over)).splitlines()[1:] == [
        "over max_bad_images: 2 of 10, allowed are 0, that is 2 too many",
        "over max_bad_shards: 3 of 12, allowed are 1, that is 2 too many",
    ]


def test_names_in_a_summary_make_no_lines_of_their_own() -> None:
    text = summary_report(summary(quarantined=(HOSTILE,), failed={HOSTILE: HOSTILE}))
    assert len(text.splitlines()) == 4
    assert "\x1b" not in text
