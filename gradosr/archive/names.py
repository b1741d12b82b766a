"""Names in an archive that stand for no image, and the kinds that they are counted by."""

import re
from collections import Counter
from collections.abc import Mapping

MOST_KINDS = 40
"""Most kinds that are counted apart: endings come from the archive, which may hold a new one in each name."""
APPLE_DOUBLE = "AppleDouble"
HIDDEN = "hidden"
WITHOUT_ENDING = "without ending"
OTHER = "of other kinds"

_FOLDERS = ("__MACOSX/", ".AppleDouble/")
_APPLE = re.compile(r"(?:\A|/)(?:(?:__MACOSX|\.AppleDouble)/|\._[^/]*\Z)")
_ENDING = re.compile(r"[^/](?:(\.tar)?\.([a-z0-9_+-]{1,12}))\Z")


def is_apple_double(name: str) -> bool:
    """Tell whether macOS made this file beside another one to keep its metadata (`._0001.JPG`, `__MACOSX/`)."""
    return ("._" in name or _FOLDERS[0] in name or _FOLDERS[1] in name) and _APPLE.search(name) is not None


def kind_of(name: str) -> str:
    """Return the kind of a file: its ending in lower case and without the dot, `tar.lz4` being one ending."""
    match = _ENDING.search(name.lower())
    return f"{(match[1] or '').removeprefix('.')}.{match[2]}".removeprefix(".") if match else WITHOUT_ENDING


def count(kind: str, counts: Counter[str], number: int = 1) -> None:
    """Add a number of `kind`; the counts keep MOST_KINDS kinds, and one for all others."""
    if number:
        counts[kind if kind in counts or len(counts) < MOST_KINDS else OTHER] += number


def listed(counts: Mapping[str, int], most: int = 6) -> str:
    """Describe counts in words, the most frequent first and the rest as one sum."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    if rest := sum(number for _, number in ordered[most:]):
        ordered[most:] = [("others", rest)]
    return ", ".join(f"{number:,} {kind}" for kind, number in ordered)
