"""Objects in the order of their URIs, however many a store lists in an order of its own."""

import heapq
import marshal
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from operator import attrgetter
from typing import BinaryIO

from gradosr.store.backends import StoredObject
from gradosr.store.spool import spooled

CHUNK = 100_000
"""Objects that are sorted in memory, about 40 MB; more wait on the temporary disk, about 150 bytes each."""
BLOCK = 250
"""Objects read back at a time from each sorted run."""
_BY_URI = attrgetter("uri")


def in_order(objects: Iterable[StoredObject]) -> Iterator[StoredObject]:
    """Yield objects sorted by URI. Memory is bounded by CHUNK objects, then by BLOCK for each run out of order."""
    listed = iter(objects)
    chunk = sorted(islice(listed, CHUNK), key=_BY_URI)
    if len(chunk) < CHUNK:
        yield from chunk
        return
    with tempfile.TemporaryFile() as file:
        runs: list[list[int]] = []
        last = ""
        while chunk:
            if not runs or chunk[0].uri < last:  # a store that lists in order needs no merging
                runs.append([])
            runs[-1] += _written(chunk, file)
            last = chunk[-1].uri
            chunk = sorted(islice(listed, CHUNK), key=_BY_URI)
        yield from heapq.merge(*(_read(run, file) for run in runs), key=_BY_URI)


def _written(chunk: list[StoredObject], file: BinaryIO) -> list[int]:
    """Append objects in blocks, and return where each block begins."""
    starts = []
    with spooled("a long listing"):
        for first in range(0, len(chunk), BLOCK):
            starts.append(file.tell())
            block = chunk[first : first + BLOCK]
            marshal.dump([(one.uri, one.size, one.version, one.modified) for one in block], file)
    return starts


def _read(starts: list[int], file: BinaryIO) -> Iterator[StoredObject]:
    for start in starts:
        with spooled("a long listing"):
            file.seek(start)
            block = marshal.load(file)  # noqa: S302 - written by this very process, into a file without a name
        for facts in block:
            yield StoredObject(*facts)
