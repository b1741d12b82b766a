"""Where in an archive images lie, and when they came to be, as far as their keys and shards tell."""

import re
from datetime import date, datetime, timezone

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

MOST_PREFIXES = 20_000
"""Folders that are told apart; with more of them, only their first steps are."""
NAME_LETTERS = 300
"""Of a folder's name."""
TOP = "/"
"""Name of the place of keys without a folder."""
_DAY = (
    r"(?:^|[^0-9])(?:[a-z]+=)?(?P<year>(?:19|20)[0-9][0-9])[-_/.]?(?:month=|m=)?(?P<month>0[1-9]|1[0-2])[-_/.]?"
    r"(?:day=|d=)?(?P<day>0[1-9]|[12][0-9]|3[01])(?:[^0-9]|$)"
)
"""2026/11/22, 2026-11-22, 20261122, dt=2026-11-22, year=2026/month=11/day=22."""


def shard_folder(kind: str, shard: str) -> str | None:
    """The shard's name, of which its images' keys are made; None for single images, whose groups are no places."""
    return None if kind == "images" else shard


def folder_of(kind: str, shard: str, key: str) -> str:
    """The folder of one image: as `Prefixes` counts them, at full depth."""
    if kind == "images":
        return key.rpartition("/")[0] or TOP
    return "/".join(filter(None, (shard.rpartition("/")[0], key[len(shard) + 1 :].rpartition("/")[0]))) or TOP


class Prefixes:
    """Images and unknown ones by folder: of the shard and, within it, of the member; of a single image its own."""

    def __init__(self, kind: str) -> None:
        """`kind` of the input."""
        self.kind = kind
        self.depth: int | None = None
        """Steps of a folder that are told apart; None: all."""
        self._counts: dict[str, list[int]] = {}

    def add(self, keys: pa.ChunkedArray, shard: str, unknown: NDArray[np.bool_]) -> None:
        """Count the rows of one shard."""
        outer = "" if self.kind == "images" else shard.rpartition("/")[0]
        if self.kind == "parquet":  # its members are row numbers
            self._bump(outer, len(unknown), int(unknown.sum()))
            return
        members = keys if self.kind == "images" else pc.utf8_slice_codeunits(keys, len(shard) + 1)
        folders = pc.replace_substring_regex(members, r"(?s)(^|/)[^/]*$", "").combine_chunks().dictionary_encode()
        codes = folders.indices.to_numpy()
        images = np.bincount(codes, minlength=len(folders.dictionary))
        found = np.bincount(codes[unknown], minlength=len(folders.dictionary))
        for inner, one, two in zip(folders.dictionary.to_pylist(), images.tolist(), found.tolist(), strict=True):
            self._bump("/".join(filter(None, (outer, inner))), one, two)

    def counts(self) -> list[tuple[str, int, int]]:
        """Name, images and unknown ones."""
        return [(name or TOP, images, unknown) for name, (images, unknown) in self._counts.items()]

    def _bump(self, name: str, images: int, unknown: int) -> None:
        name = name[:NAME_LETTERS] if self.depth is None else _first_steps(name[:NAME_LETTERS], self.depth)
        counts = self._counts.setdefault(name, [0, 0])
        counts[0] += images
        counts[1] += unknown
        if len(self._counts) > MOST_PREFIXES:
            self._shorten()

    def _shorten(self) -> None:
        """To as many steps as leave few enough folders: the same number in whatever order they came."""
        depth = max(name.count("/") + 1 for name in self._counts)
        while len({_first_steps(name, depth) for name in self._counts}) > MOST_PREFIXES:
            depth -= 1
        self.depth, before, self._counts = depth, self._counts, {}
        for name, (images, unknown) in before.items():
            self._bump(name, images, unknown)


def _first_steps(name: str, steps: int) -> str:
    return "/".join(name.split("/")[:steps])


class Days:
    """Images and unknown ones by the first date in their key; without one, by the day their shard was last modified."""

    def __init__(self) -> None:
        self._counts: dict[int, list[int]] = {}
        self.from_keys = self.from_shards = self.undated = 0
        """Images whose day is known by either, or by none."""

    def add(
        self, keys: pa.ChunkedArray, shard: str | None, unknown: NDArray[np.bool_], modified: int | None = None
    ) -> None:
        """Count rows of one shard, modified then (seconds since 1970).

        Its name, where keys begin with it, may hold the date of them all.
        """
        days, places = np.unique(_days_in(keys, shard), return_inverse=True)
        images, found = np.bincount(places), np.bincount(places[unknown], minlength=len(days))
        for code, one, two in zip(days.tolist(), images.tolist(), found.tolist(), strict=True):
            if _date(code):
                self.from_keys += one
                self._bump(code, one, two)
            elif day := _utc_day(modified):
                self.from_shards += one
                self._bump(day, one, two)
            else:
                self.undated += one

    def counts(self) -> list[tuple[str, int, int]]:
        """Day as YYYY-MM-DD, images and unknown ones, in order."""
        return [(str(_date(code)), images, unknown) for code, (images, unknown) in sorted(self._counts.items())]

    def _bump(self, code: int, images: int, unknown: int) -> None:
        counts = self._counts.setdefault(code, [0, 0])
        counts[0] += images
        counts[1] += unknown


def _days_in(keys: pa.ChunkedArray, shard: str | None) -> NDArray[np.int64]:
    """YYYYMMDD of each key, 0 where there is none; also what looks like a date and is none."""
    codes = np.zeros(len(keys), np.int64)
    if shard is not None and (found := re.search(_DAY, shard, re.IGNORECASE)):
        codes[:] = int("".join(found.group("year", "month", "day")))
        return codes
    members = keys if shard is None else pc.utf8_slice_codeunits(keys, len(shard) + 1)
    digits = pc.extract_regex(members, f"(?i){_DAY}").combine_chunks()
    dated, digits = digits.is_valid().to_numpy(zero_copy_only=False), digits.drop_null()
    year, month, day = (digits.field(name).cast(pa.int32()).to_numpy() for name in ("year", "month", "day"))
    codes[dated] = year * 10_000 + month * 100 + day
    return codes


def _utc_day(seconds: int | None) -> int | None:
    """YYYYMMDD; None for what no calendar holds."""
    if seconds is None:
        return None
    try:
        day = datetime.fromtimestamp(seconds, timezone.utc)
    except (OverflowError, OSError, ValueError):  # file systems take any time
        return None
    return day.year * 10_000 + day.month * 100 + day.day


def _date(code: int) -> date | None:
    """None for the 31st of February."""
    try:
        return date(code // 10_000, code // 100 % 100, code % 100)
    except ValueError:
        return None
