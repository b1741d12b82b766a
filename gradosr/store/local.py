"""Objects in local folders. A write is a temporary file, fsync and a rename, so an object is whole or not there."""

import errno
import io
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from gradosr.errors import AccessDenied, NotFound, ObjectChanged, StoreError
from gradosr.store import StoredObject

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

COPY_BYTES = 2**20
_TEMPORARY = ".gradosr-"  # hidden: pyarrow and most readers of folders pass over such names, and so do we


class LocalBackend:
    """See Backend. A file's version is its size and its modification time in nanoseconds."""

    def list(self, uri: str) -> Iterator[StoredObject]:
        """Links are followed; what is no file (pipes, dangling links) and what a broken write left are passed over."""
        stem = uri.rpartition("/")[2]
        return _walk(uri.removesuffix(stem), stem, frozenset())

    def stat(self, uri: str) -> StoredObject:
        """A folder is no object."""
        with _translated(uri):
            status = _path(uri).stat()
        if not stat.S_ISREG(status.st_mode):
            raise NotFound(f"{uri}: not a file")
        return StoredObject(uri, status.st_size, _version(status))

    def read(self, uri: str) -> bytes:
        """The whole file."""
        with _translated(uri):
            return _path(uri).read_bytes()

    def open(self, stored: StoredObject) -> BinaryIO:
        """The version is checked here, once: a file replaced by renaming is read on as it was."""
        try:
            with _translated(stored.uri):
                file = _File(stored.uri)
        except NotFound as error:
            raise ObjectChanged(f"{stored.uri}: removed after it was listed") from error
        if _version(os.fstat(file.fileno())) != stored.version:
            file.close()
            raise ObjectChanged(f"{stored.uri}: replaced after it was listed")
        return io.BufferedReader(file, COPY_BYTES)

    def write(self, uri: str, body: bytes | BinaryIO, *, if_absent: bool = False) -> bool:
        """A hidden temporary file beside the target, removed on failure, and a rename (`if_absent`: a hard link)."""
        path = _path(uri)
        temporary = path.parent / f"{_TEMPORARY}{uuid.uuid4().hex}"
        with _translated(uri):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                _fill(temporary, body)
                written = _publish(temporary, path, if_absent)
            finally:
                temporary.unlink(missing_ok=True)
            _sync_folder(path.parent)
        return written

    def move(self, source: str, target: str) -> None:
        """A rename, so within one file system."""
        with _translated(source):
            _path(target).parent.mkdir(parents=True, exist_ok=True)
            _path(source).replace(_path(target))


class _File(io.FileIO):
    """A file whose failing reads (a lost network mount, a bad disk) are StoreErrors, never mistaken for bad content."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        super().__init__(_path(uri))

    def readinto(self, buffer: "WriteableBuffer") -> int:
        with _translated(self._uri):
            return super().readinto(buffer)

    def readall(self) -> bytes:
        with _translated(self._uri):
            return super().readall()


def _path(uri: str) -> Path:
    return Path(uri.removeprefix("file://"))


def _version(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}"


def _walk(folder: str, stem: str, above: frozenset[tuple[int, int]]) -> Iterator[StoredObject]:
    """Files below `folder` ("" or ending in /) whose path there begins with `stem`.

    Links are followed, except to a folder that is being walked already (`above`: device and inode of each).
    """
    with _translated(folder or "."):
        status = _path(folder).stat()
        here = (status.st_dev, status.st_ino)
        if here in above:
            return
        with os.scandir(_path(folder)) as entries:
            # A folder sorts as its objects' URIs do: `a-b` comes before `a/b`.
            names = sorted(_name(entry) for entry in entries if entry.name.startswith(stem))
    for name in names:
        if name.endswith("/"):
            yield from _walk(f"{folder}{name}", "", above | {here})
        elif not name.startswith(_TEMPORARY):
            yield from _file(f"{folder}{name}")


def _name(entry: os.DirEntry[str]) -> str:
    try:
        return f"{entry.name}/" if entry.is_dir() else entry.name
    except OSError:  # a link to itself; other faults show again when the file is looked at
        return entry.name


def _file(uri: str) -> Iterator[StoredObject]:
    """The file as an object; nothing where it vanished meanwhile, or is a dangling link, a pipe or a socket."""
    try:
        with _translated(uri):
            status = _path(uri).stat()
    except NotFound:
        return
    if stat.S_ISREG(status.st_mode):
        yield StoredObject(uri, status.st_size, _version(status))


def _fill(path: Path, body: bytes | BinaryIO) -> None:
    with path.open("xb") as file:
        if isinstance(body, bytes):
            file.write(body)
        else:
            body.seek(0)
            shutil.copyfileobj(body, file, COPY_BYTES)
        file.flush()
        os.fsync(file.fileno())


def _publish(temporary: Path, path: Path, if_absent: bool) -> bool:
    if if_absent:
        try:
            os.link(temporary, path)  # unlike a rename it fails when the name is taken: the first counts
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links: the last counts
            temporary.replace(path)
    else:
        temporary.replace(path)
    return True


def _sync_folder(folder: Path) -> None:
    """Makes the new name as durable as the bytes."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _translated(uri: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound(f"{uri}: no such file or folder") from error
    except NotADirectoryError as error:
        raise NotFound(f"{uri}: a file stands where a folder is needed") from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NotFound(f"{uri}: a link that leads in circles") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise AccessDenied(f"{uri}: {os.strerror(error.errno).lower()}") from error
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(f"{uri}: no space left on its disk; make room and run the same command again") from error
        raise StoreError(f"{uri}: {(error.strerror or str(error)).lower()}") from error
