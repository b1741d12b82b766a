"""Text and figures for people. Text from an archive is made harmless: no markup, control characters or great length."""

import math
import unicodedata
from itertools import groupby

from markupsafe import Markup

from gradosr.text import NBSP, printable

SHOWN = 90
"""Letters shown on the page of a text from the archive; the middle of a longer text is left out."""
HOVERED = 1000
"""Letters shown when the pointer rests on a text."""
_MARKS = 3  # most combining marks on one letter; a pile of them would cover other lines
NONE = "\u2013"
_MINUS = "\u2212"
_RAISED = str.maketrans("-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079")


def neutral(text: str) -> str:
    """Escape control characters, bidirectional overrides and lone bytes, and cut piles of combining marks."""
    if not text.isascii():
        runs = [
            (marks, "".join(run))
            for marks, run in groupby(text, key=lambda letter: bool(unicodedata.combining(letter)))
        ]
        text = "".join(run[:_MARKS] if marks else run for marks, run in runs)
    return NBSP.join(printable(part) for part in text.split(NBSP))


def shortened(text: str, limit: int = SHOWN) -> str:
    """Return neutral text of about `limit` letters: the beginning, and the end, which distinguishes files."""
    if len(text) > 4 * limit:
        text = text[: 2 * limit] + text[-2 * limit :]
    text = neutral(text)
    head = limit * 3 // 5
    return text if len(text) <= limit else f"{text[:head]}\u2026{text[len(text) - (limit - head) :]}"


def foreign(text: str | None, limit: int = SHOWN) -> Markup:
    """Return text from an archive as markup, escaped and isolated from the text direction around it."""
    return Markup("{}").format(NONE) if text is None else _isolated(text, shortened(text, limit))


def ending(text: str, limit: int) -> Markup:
    """Return text from an archive as markup that shows its last `limit` letters, for narrow columns."""
    tail = neutral(text[-2 * limit :])[-limit:]
    return _isolated(text, tail if len(text) <= limit else f"\u2026{tail}")


def _isolated(text: str, short: str) -> Markup:
    if short == text:
        return Markup('<bdi dir="ltr" class="foreign">{}</bdi>').format(short)
    return Markup('<bdi dir="ltr" class="foreign" title="{}">{}</bdi>').format(shortened(text, HOVERED), short)


def count(number: float | None) -> str:
    """Format a number with thousands separators, such as 1,204,332."""
    return NONE if number is None else f"{number:,.0f}"


def percent(share: float | None) -> str:
    """Format a share with its significant digits: 12.3 %, 4.1 %, 0.032 %; a whole per cent is written as 5 %."""
    if share is None:
        return NONE
    value = 100 * share
    if value and abs(value) < 0.0005:
        return f"{_MINUS if value < 0 else ''}<{NBSP}0.001{NBSP}%"
    digits = next((digits for bound, digits in ((0.995, 1), (0.0995, 2)) if abs(value) >= bound), 3)
    digits = 0 if abs(value - round(value)) < 1e-9 else digits
    return f"{value:.{digits}f}{NBSP}%".replace("-", _MINUS)


def interval(low: float | None, high: float | None) -> str:
    """Format an interval of shares, such as 3.2 % to 5.3 %."""
    return NONE if low is None or high is None else f"{percent(low)} to {percent(high)}"


def points(difference: float) -> str:
    """Format a change of a share in percentage points."""
    return f"{100 * difference:+.2f}{NBSP}points".replace("-", _MINUS)


def score(value: float | None) -> str:
    """Format an unknown score with three decimals."""
    return NONE if value is None else f"{value:.3f}".replace("-", _MINUS)


def p_value(value: float | None) -> str:
    """Format a p-value with two significant digits: 0.07, 0.000021, 7.0 x 10^-9."""
    if value is None or value >= 0.995 or value == 0:
        return NONE if value is None else f"{value:.0f}"
    power = math.floor(math.log10(value))
    if power >= -6:
        return f"{value:.{1 - power}f}"
    return f"{value / 10.0**power:.1f}\u00d710{str(power).translate(_RAISED)}"


def plural(number: float, one: str, many: str | None = None) -> str:
    """Format a number with its noun, such as 1 image or 2 images."""
    return f"{count(number)}{NBSP}{one if number == 1 else many or one + 's'}"
