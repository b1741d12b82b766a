"""What a person sees: safe, short and true."""

import io
import time
from collections import Counter

from rich.console import Console

from gradosr.progress import Progress
from gradosr.run import Summary
from gradosr.telemetry import Notes, line, printable, summary_report


def test_control_characters_are_shown_not_obeyed() -> None:
    assert printable("a\x1b[31mred\r\n\u202e") == "a\\x1b[31mred\\r\\n\\u202e"
    assert printable("Größe 漢字") == "Größe 漢字"


def test_a_line_says_where_the_run_stands() -> None:
    counts = Counter(rows=1200, ok=1000, unknown=50, truncated=200)
    progress = Progress(total=40, done=10, workers=2, counts=counts, first_ready=time.monotonic() - 10)
    text = line(progress)
    assert "shards 10/40" in text
    assert "images 1,200 (120/s)" in text
    assert "unknown 5.0%" in text
    assert "bad images 200" in text
    assert "ETA 0:30" in text
    assert "workers 2" in text


def test_without_a_terminal_steps_are_rare_plain_lines() -> None:
    out = io.StringIO()
    with Notes(Console(file=out, force_terminal=False)) as notes:
        for i in range(1000):
            notes.step(f"step {i}")
        notes.say("done [bold]")
    assert out.getvalue() == "step 0\ndone [bold]\n"


def test_a_summary_names_what_is_missing() -> None:
    counts = {"rows": 10, "ok": 8, "unknown": 1, "empty": 2}
    summary = Summary("out", 12, 10, counts, 3, ("a.tar",), {f"b{i}.tar": "reset" for i in range(12)})
    lines = summary_report(summary).splitlines()
    assert lines[0] == "10 shards scored now; out holds 10 rows of 12 shards: 8 scored, 1 unknown, 2 empty"
    assert "3 outdated parts moved to superseded/" in lines
    assert "quarantined: a.tar (reason in quarantine/)" in lines
    assert "failed: b0.tar: reset" in lines
    assert "... and 2 more" in lines
    assert lines[-1].startswith("the table is not whole")
