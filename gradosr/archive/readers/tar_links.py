"""Links of a tar file, followed to the members that they lead to."""

import posixpath
import tarfile
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import BinaryIO, NamedTuple

from gradosr.archive.readers.compressed import decompressed
from gradosr.archive.readers.tar_members import Cut, content, cuts, members, name_of
from gradosr.archive.shards import as_text
from gradosr.errors import MachineFault
from gradosr.text import reason

_MOST_STEPS = 40  # from link to link, as many as Linux follows
_MAX_INDEX = 128 * 2**20  # bytes of members in memory, of which each takes _ENTRY and its names
_ENTRY = 512
_MAX_COPY = 4 * 2**30  # bytes of a compressed archive with links, which is copied to disk
_CHUNK = 2**20


class Target(NamedTuple):
    """A member that a link may lead to."""

    name: str
    offset: int
    """Place of its header."""
    start: int
    """Place of its content."""
    size: int
    sparse: bool
    link: str | None
    """Name that it leads to, if it is a link itself."""
    symbolic: bool


class Links:
    """The links of one archive, which is opened a second time at the first of them.

    GNU tar writes a hard link for each further name of a file. What links lead to lies anywhere, while reading goes on
    from where the link was met: that is why there is a second file. A compressed one cannot go back, and is copied to
    disk in plain. To be used as a context manager.
    """

    def __init__(self, open_again: Callable[[], AbstractContextManager[BinaryIO]], uri: str) -> None:
        self.searched = "this shard"
        """Part of the archive in which links are followed, in words: all of it, or as much as the limits allow."""
        self._open_again, self._uri = open_again, uri
        self._stack = ExitStack()
        self._index: dict[str, list[Target]] | None = None

    def __enter__(self) -> "Links":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def follow(self, name: str, member: tarfile.TarInfo) -> Target | None:
        """Return the file that a link leads to; None if the archive holds none. Raises StoreError and MachineFault."""
        if self._index is None:
            self._file = self._opened()
            self._index = self._indexed()
        at = _target(name, member)
        for _ in range(_MOST_STEPS):
            path = posixpath.join(posixpath.dirname(at.name), at.link or "") if at.symbolic else at.link or ""
            places = self._index.get(posixpath.normpath(path), ())
            # A hard link means a file before it, a symbolic one what its name stands for in the end.
            found = next((one for one in reversed(places) if at.symbolic or one.offset < at.offset), None)
            if found is None or found.link is None:
                return found
            at = found
        return None

    def read(self, target: Target, limit: int) -> bytes:
        """Read the first `limit` bytes of a target. Raises Cut."""
        return content(self._file, target.start, min(target.size, limit))

    def _opened(self) -> BinaryIO:
        """Open the archive again; of a compressed one, copy what is whole, up to a limit."""
        file = self._stack.enter_context(self._open_again())
        stream = decompressed(file, self._uri)
        if stream is file:
            return file
        with _disk():
            copy = self._stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - closed with the stack
        while copy.tell() < _MAX_COPY:
            try:
                with cuts():
                    data = stream.read(_CHUNK)
            except Cut:
                return copy  # told by the one who reads the archive
            if not data:
                return copy
            with _disk():
                copy.write(data)
                copy.flush()
        self.searched = f"the first {_MAX_COPY} bytes of this compressed shard"
        return copy

    def _indexed(self) -> dict[str, list[Target]]:
        """List all files and links by their paths, as far as the archive is whole and memory is allowed."""
        self._file.seek(0)
        index = defaultdict[str, list[Target]](list)
        size = 0
        with suppress(Cut):  # told by the one who reads the archive
            for number, member in enumerate(members(self._file)):
                target = _target(name_of(member), member)
                size += len(target.name) + len(target.link or "") + _ENTRY
                if size > _MAX_INDEX:
                    self.searched = f"the first {number} members of this shard"
                    break
                if member.isreg() or member.islnk() or member.issym():
                    index[posixpath.normpath(target.name)].append(target)
        return index


@contextmanager
def _disk() -> Iterator[None]:
    """Raise MachineFault that names the temporary folder if it cannot be written, which is no fault of the archive."""
    try:
        yield
    except OSError as error:
        advice = "a compressed archive with links is copied there; make room, set TMPDIR, or use .tar files"
        raise MachineFault(f"{tempfile.gettempdir()}: {reason(error)}: {advice}") from error


def _target(name: str, member: tarfile.TarInfo) -> Target:
    link = None if member.isreg() else as_text(member.linkname)
    return Target(name, member.offset, member.offset_data, member.size, member.issparse(), link, member.issym())
