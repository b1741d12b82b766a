"""The location of images in an archive and their dates, derived from their keys and shards."""

import re
from datetime import date, datetime, timezone

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gradosr.archive.readers import keys_of

MOST_PREFIXES = 20_000
"""Most folders that are counted separately; if there are more, only their first steps are distinguished."""
NAME_LETTERS = 300
"""Most letters kept of a folder's name."""
TOP = "/"
"""Name used for keys that have no folder."""
_DAY = (
    r"(?:^|[^0-9])(?:[a-z]+=)?(?P<year>(?:19|20)[0-9][0-9])[-_/.]?(?:month=|m=)?(?P<month>0[1-9]|1[0-2])[-_/.]?"
    r"(?:day=|d=)?(?P<day>0[1-9]|[12][0-9]|3[01])(?:[^0-9]|$)"
)
"""A date such as 2026/11/22, 2026-11-22, 20261122, dt=2026-11-22 or year=2026/month=11/day=22."""


def shard_folder(kind: str, shard: str) -> str | None:
    """Return the shard's name, with which its images' keys begin; None for single images: groups are not places."""
    return None if keys_of(kind) == "path" else shard


def folder_of(kind: str, shard: str, key: str) -> str:
    """Return the folder of one image as `Prefixes` counts it, at full depth."""
    if keys_of(kind) == "path":
        return key.rpartition("/")[0] or TOP
    return "/".join(filter(None, (shard.rpartition("/")[0], key[len(shard) + 1 :].rpartition("/")[0]))) or TOP


class Prefixes:
    """Counts of images and of unknown images by folder: the shard's folder joined with that of the member within it."""

    def __init__(self, kind: str) -> None:
        """Start without counts; `kind` is that of the input."""
        self.kind, self._keys = kind, keys_of(kind)
        self.depth: int | None = None
        """Number of steps of a folder that are distinguished; None for all."""
        self._counts: dict[str, list[int]] = {}

    def add(self, keys: pa.ChunkedArray, shard: str, unknown: NDArray[np.bool_]) -> None:
        """Count the rows of one shard."""
        outer = "" if self._keys == "path" else shard.rpartition("/")[0]
        if self._keys == "shard#row":
            self._bump(outer, len(unknown), int(unknown.sum()))
            return
        members = keys if self._keys == "path" else pc.utf8_slice_codeunits(keys, len(shard) + 1)
        steps = pc.split_pattern(members, "/", max_splits=1, reverse=True).combine_chunks()
        is_top = pc.equal(pc.list_value_length(steps), 1)
        folders = pc.if_else(is_top, "", pc.list_element(steps, 0)).dictionary_encode()
        codes = folders.indices.to_numpy()
        images = np.bincount(codes, minlength=len(folders.dictionary))
        found = np.bincount(codes[unknown], minlength=len(folders.dictionary))
        for inner, one, two in zip(folders.dictionary.to_pylist(), images.tolist(), found.tolist(), strict=True):
            self._bump("/".join(filter(None, (outer, inner))), one, two)

    def counts(self) -> list[tuple[str, int, int]]:
        """Return the name, number of images and number of unknown images of each folder."""
        return [(name or TOP, images, unknown) for name, (images, unknown) in self._counts.items()]

    def _bump(self, name: str, images: int, unknown: int) -> None:
        name = name[:NAME_LETTERS] if self.depth is None else _first_steps(name[:NAME_LETTERS], self.depth)
        counts = self._counts.setdefault(name, [0, 0])
        counts[0] += images
        counts[1] += unknown
        if len(self._counts) > MOST_PREFIXES:
            self._shorten()

    def _shorten(self) -> None:
        """Reduce the folders to as many steps as MOST_PREFIXES allows; the result does not depend on their order."""
        depth = max(name.count("/") + 1 for name in self._counts)
        while len({_first_steps(name, depth) for name in self._counts}) > MOST_PREFIXES:
            depth -= 1
        self.depth, before, self._counts = depth, self._counts, {}
        for name, (images, unknown) in before.items():
            self._bump(name, images, unknown)


def _first_steps(name: str, steps: int) -> str:
    return "/".join(name.split("/")[:steps])


class Days:
    """Counts of images and of unknown images by day: the first date in the key, or else when the shard was modified."""

    def __init__(self) -> None:
        self._counts: dict[int, list[int]] = {}
        self.from_keys = self.from_shards = self.undated = 0
        """Images whose day comes from the key, from the shard, or is not known."""

    def add(
        self, keys: pa.ChunkedArray, shard: str | None, unknown: NDArray[np.bool_], modified: int | None = None
    ) -> None:
        """Count the rows of one shard that was last modified at `modified` (seconds since 1970).

        If keys begin with the shard's name, a date in that name applies to all of them.
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
        """Return the day (YYYY-MM-DD), number of images and number of unknown images, in order of days."""
        return [(str(_date(code)), images, unknown) for code, (images, unknown) in sorted(self._counts.items())]

    def _bump(self, code: int, images: int, unknown: int) -> None:
        counts = self._counts.setdefault(code, [0, 0])
        counts[0] += images
        counts[1] += unknown


def days_of(keys: pa.ChunkedArray, shard: str | None, modified: int | None) -> list[str | None]:
    """Return the day (YYYY-MM-DD) of each image as `Days` counts it; the arguments are those of `Days.add`."""
    other = _utc_day(modified)
    codes = [code if _date(code) else other for code in _days_in(keys, shard).tolist()]
    return [None if code is None else str(_date(code)) for code in codes]


def _days_in(keys: pa.ChunkedArray, shard: str | None) -> NDArray[np.int64]:
    """Return the first date in each key as YYYYMMDD, or 0; the date need not exist in the calendar."""
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
    """Return the day in UTC as YYYYMMDD; None for a time that no calendar holds."""
    if seconds is None:
        return None
    try:
        day = datetime.fromtimestamp(seconds, timezone.utc)
    except (OverflowError, OSError, ValueError):  # file systems accept any time
        return None
    return day.year * 10_000 + day.month * 100 + day.day


def _date(code: int) -> date | None:
    """Convert YYYYMMDD to a date; None for one that does not exist, such as 31 February."""
    try:
        return date(code // 10_000, code // 100 % 100, code % 100)
    except ValueError:
        return None
