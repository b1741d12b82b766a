"""Groups: the shards of an archive of single images, found by joining the listing with the groups on record.

Both come in the order of the names and neither is ever in memory whole: a hundred million images are listed with a
few hundred bytes per group and open recording.
"""

import hashlib
import heapq
import json
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from gradosr.archive.pieces import Member, PieceWriter, damaged, rows_of
from gradosr.archive.shards import Shard, objects_of
from gradosr.config import ImagesInput
from gradosr.store import Store


@dataclass(frozen=True)
class Recording:
    """Groups that were recorded at one time, numbered on from those before, with their images sorted by name."""

    groups: int
    """Number of groups."""
    pieces: Sequence[str] = ()
    """URIs of the pieces that list them, in order."""
    names: Sequence[Sequence[str]] = ()
    """Names of the images of each group, as they were recorded before there were pieces."""
    uri: str = ""
    """URI of the file that records them."""


@dataclass(frozen=True)
class Record:
    """The groups that a run folder knows of."""

    recordings: Sequence[Recording] = ()
    settled: Container[str] = frozenset()
    """Names of the parts that are there, so that nobody will read their groups."""


@dataclass
class Regrouped:
    """Additions of a listing to the record, in temporary files."""

    groups: int = 0
    """Number of new groups."""
    new: PieceWriter = field(default_factory=PieceWriter)
    """Pieces of the new groups."""
    changed: PieceWriter = field(default_factory=PieceWriter)
    """Pieces of recorded groups that are still to be read and whose images are not as they were recorded."""


def list_groups(
    source: ImagesInput, store: Store, record: Record, passed_over: Counter[str] | None = None
) -> tuple[list[Shard], Regrouped]:
    """List the archive's images in groups, as one shard each, and what has to be recorded of them before they are read.

    A recorded group keeps its images and their order; images that no longer exist are left out, and a group without
    any image left is not listed. All other images form new groups, numbered on from the recorded ones. What else is
    there is counted in `passed_over`, by kind. Raises InputError if there are no images.
    """
    folder, listed = objects_of(source, store, passed_over)
    found = _Found(folder, record, source.group_size)
    entries = heapq.merge(*(_entries(place, record, store) for place in range(len(record.recordings))))
    entry = next(entries, None)
    for name, stored in listed:
        now = (name, stored.size, stored.version)
        while entry and entry[0][0] < name:
            found.keep(entry, None)
            entry = next(entries, None)
        if entry is None or entry[0][0] != name:
            found.add(now)
        while entry and entry[0][0] == name:
            found.keep(entry, now)
            entry = next(entries, None)
    while entry:
        found.keep(entry, None)
        entry = next(entries, None)
    return found.finish()


_Entry = tuple[Member, int, int, str]
"""One recorded image, the index of its recording, its group, and the piece that lists it ("" if none does)."""


def _entries(place: int, record: Record, store: Store) -> Iterator[_Entry]:
    """Yield the images of a recording. Raises InputError unless their names ascend."""
    recording, before = record.recordings[place], ""
    first = 1 + sum(one.groups for one in record.recordings[:place])
    for piece, rows in _recorded(recording, first, store):
        for group, member in rows:
            if member[0] < before:
                raise damaged(piece or recording.uri, ValueError(f"{member[0]} stands after {before}"))
            before = member[0]
            yield member, place, group, piece


def _recorded(recording: Recording, first: int, store: Store) -> Iterator[tuple[str, Iterable[tuple[int, Member]]]]:
    """Yield each piece, and group and image of its rows; what was recorded by name alone has impossible sizes."""
    for piece in recording.pieces:
        yield piece, rows_of(piece, store)
    for group, names in enumerate(recording.names, start=first):
        yield "", [(group, (name, -1, "")) for name in names]


@dataclass
class _Open:
    """A recorded group whose images are being found."""

    number: int
    piece: str
    members: list[Member] = field(default_factory=list)
    same: bool = True
    """Whether all images so far are as they were recorded."""


class _Found:
    """The groups found so far: at most one is open per recording, since the images of each are sorted."""

    def __init__(self, folder: str, record: Record, size: int) -> None:
        self._folder, self._settled, self._size = folder, record.settled, size
        self._recorded = sum(one.groups for one in record.recordings)
        self._open: dict[int, _Open] = {}
        self._fresh: list[Member] = []
        self._shards: dict[int, Shard] = {}
        self._regrouped = Regrouped()

    def keep(self, entry: _Entry, now: Member | None) -> None:
        """Take a recorded image as it is listed now, if it is."""
        member, place, number, piece = entry
        group = self._open.get(place)
        if group is None or group.number != number:
            if group:
                self._close(group)
            group = self._open[place] = _Open(number, piece)
        if now:
            group.members.append(now)
        if now != member:
            group.same = False

    def add(self, member: Member) -> None:
        """Take an image that is not on record."""
        self._fresh.append(member)
        if len(self._fresh) == self._size:
            self._close_fresh()

    def finish(self) -> tuple[list[Shard], Regrouped]:
        """Close all groups and return the shards by number."""
        for group in self._open.values():
            self._close(group)
        if self._fresh:
            self._close_fresh()
        for writer in (self._regrouped.new, self._regrouped.changed):
            writer.close()
        return [shard for _, shard in sorted(self._shards.items())], self._regrouped

    def _close_fresh(self) -> None:
        self._regrouped.groups += 1
        number = self._recorded + self._regrouped.groups
        self._shards[number] = _shard(number, self._folder, self._fresh, self._regrouped.new.add(number, self._fresh))
        self._fresh = []

    def _close(self, group: _Open) -> None:
        if not group.members:
            return
        shard = _shard(group.number, self._folder, group.members, group.piece)
        if not group.same and shard.part not in self._settled:
            piece = self._regrouped.changed.add(group.number, group.members)
            shard = _shard(group.number, self._folder, group.members, piece)
        self._shards[group.number] = shard


def _shard(number: int, folder: str, members: Sequence[Member], piece: str) -> Shard:
    name = f"group-{number:06d}"
    versions = json.dumps([[name, version] for name, _, version in members])
    return Shard(
        name=name,
        uri=f"{folder}#{name}",
        version=hashlib.sha256(versions.encode()).hexdigest(),
        size=sum(size for _, size, _ in members),
        piece=piece,
    )
