"""A night says how much of what is new is unknown before it says that no gate tripped."""

from html import unescape
from typing import Any

import pytest

from gradosr.audit import night_words, report
from gradosr.audit.nights import Counts, Night, Verdict

RELATIVE = Verdict("rate_increase", 0.02, 0.0, tripped=False, why="no earlier night has images")
ABSOLUTE = Verdict("unknown_rate", 0.2, 0.8, tripped=True, why="80 % of 1,000 new images are over the threshold")


def night(
    unknown: int, *verdicts: Verdict, share: dict[str, float] | None = None, images: int = 1000
) -> dict[str, Any]:
    found = Night("2026-11-28", "2026-11-28T02:30:00+01:00", Counts(images, images, unknown), 3, 3, (), verdicts, share)
    return Night.of(found.document()).document()


def plain(text: str) -> str:
    return unescape(text).replace("\u00a0", " ")


def test_a_night_of_unknown_images_says_so_though_only_relative_gates_are_set() -> None:
    page = plain(report.render_nights("out", [night(800, RELATIVE)]))
    assert "<h1>2026-11-28: 80 % of 1,000 new images over the threshold; no gate tripped</h1>" in page
    assert "none of the gates that are set watches that. Set gates.unknown_rate" in page


def test_the_share_of_unknown_images_comes_first_where_it_is_known() -> None:
    share = {"estimate": 0.79, "low": 0.77, "high": 0.81}
    document = night(800, RELATIVE, ABSOLUTE, share=share)
    assert plain(night_words.headline(document)) == (
        "2026-11-28: about 79 % of 1,000 new images unknown (77 % to 81 %); 1 gate tripped"
    )
    page = plain(report.render_nights("out", [document]))
    assert "none of the gates" not in page
    assert page.index("Unknown, about") < page.index("Gates that tripped")


@pytest.mark.parametrize(
    ("document", "warned"),
    [
        (night(499, RELATIVE), False),
        (night(501, RELATIVE), True),
        (night(501, ABSOLUTE), False),
        (night(600, RELATIVE, share={"estimate": 0.5, "low": 0.45, "high": 0.55}), False),
        (night(0, RELATIVE, images=0), False),
    ],
)
def test_a_warning_is_for_nights_that_are_surely_mostly_unknown(document: dict[str, Any], warned: bool) -> None:
    assert bool(night_words.watched(document)) == warned


def test_a_night_without_images_and_one_of_an_older_version() -> None:
    assert night_words.headline(night(0, images=0)) == "2026-11-28: no new image; no gate tripped"
    old = {name: value for name, value in night(10).items() if name != "unknown_share"}
    assert Night.of(old).unknown_share is None
    assert "1 % of" in plain(report.render_nights("out", [old]))
