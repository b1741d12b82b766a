"""Words and figures for people. What comes from an archive is neutralised: no markup, no control, no endless name."""

import unicodedata
from itertools import groupby

from markupsafe import Markup

from gradosr.telemetry import printable

SHOWN = 90
"""Letters of a text from the archive that stand on the page; the middle of a longer one is left out."""
HOVERED = 1000
"""Letters that a pointer over it brings up."""
_MARKS = 3  # combining marks on one letter; a tower of them would cover other lines
NBSP = "\u00a0"
NONE = "\u2013"


def neutral(text: str) -> str:
    """Control characters, bidirectional overrides and lone bytes shown, not obeyed; towers of accents cut."""
    if not text.isascii():
        runs = [
            (marks, "".join(run)) for marks, run in groupby(text, key=lambda letter: bool(unicodedata.combining(letter)))
        ]
        text = "".join(run[:_MARKS] if marks else run for marks, run in runs)
    return printable(text)


def shortened(text: str, limit: int = SHOWN) -> str:
    """Neutral text of about `limit` letters: the beginning and the end, which tells files apart."""
    if len(text) > 4 * limit:
        text = text[: 2 * limit] + text[-2 * limit :]
    text = neutral(text)
    head = limit * 3 // 5
    return text if len(text) <= limit else f"{text[:head]}\u2026{text[len(text) - (limit - head) :]}"


def foreign(text: str | None, limit: int = SHOWN) -> Markup:
    """Text from an archive as markup: escaped, and kept from turning the words around it."""
    if text is None:
        return Markup(NONE)
    short = shortened(text, limit)
    if len(text) > limit:
        return Markup('<bdi class="foreign" title="{}">{}</bdi>').format(shortened(text, HOVERED), short)
    return Markup('<bdi class="foreign">{}</bdi>').format(short)


def count(number: float | None) -> str:
    """1,204,332."""
    return NONE if number is None else f"{number:,.0f}"


def percent(share: float | None, *, signed: bool = False) -> str:
    """A share with two digits that count: 4.1 %, 0.032 %, 37 %."""
    if share is None:
        return NONE
    value = 100 * share
    digits = next((digits for bound, digits in ((9.95, 0), (0.995, 1), (0.0995, 2)) if abs(value) >= bound), 3)
    if value and abs(value) < 0.0005:
        return f"{'-' if value < 0 else ''}<{NBSP}0.001{NBSP}%".replace("-", "\u2212")
    sign = "+" if signed else ""
    return f"{value:{sign}.{digits if value else 0}f}{NBSP}%".replace("-", "\u2212")


def interval(low: float | None, high: float | None) -> str:
    """3.2 % to 5.3 %."""
    return NONE if low is None or high is None else f"{percent(low)} to {percent(high)}"


def points(difference: float) -> str:
    """A change of a share, in percentage points."""
    return f"{100 * difference:+.2f}{NBSP}points".replace("-", "\u2212")


def score(value: float | None) -> str:
    """An unknown score."""
    return NONE if value is None else f"{value:.3f}".replace("-", "\u2212")


def p_value(value: float | None) -> str:
    """Two digits that count."""
    return NONE if value is None else f"{value:.2g}" if value < 0.001 else f"{value:.4f}"


def plural(number: float, one: str, many: str | None = None) -> str:
    """1 image, 2 images."""
    return f"{count(number)}{NBSP}{one if number == 1 else many or one + 's'}"
