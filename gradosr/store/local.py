"""Objects in local folders. A write is a temporary file, fsync and a rename, so an object is whole or not there."""

import errno
import io
import os
import shutil
import stat
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from gradosr.config import S3Settings
from gradosr.errors import AccessDenied, ConfigError, NoConditionalWrites, NotFound, ObjectChanged, StoreError
from gradosr.store.backends import Backend, StoredObject

try:
    import fcntl
except ImportError as error:
    raise ConfigError("local files need the locks of Linux or macOS; on Windows, run gradosr in WSL 2") from error

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

COPY_BYTES = 2**20
LOCK_SECONDS = 10.0  # an exchange waits this long for another in the same folder, which takes milliseconds
_TEMPORARY = ".gradosr-"  # hidden: pyarrow and most readers of folders skip such names, and so do we
_LOCK = f"{_TEMPORARY}lock"  # stays: a lock file that is removed locks nobody out


def connect(_: S3Settings) -> Backend:
    """Make the backend; no settings apply."""
    return LocalBackend()


class LocalBackend:
    """Files as objects: see Backend. A version is a file's size and its modification time in nanoseconds."""

    def list(self, uri: str) -> Iterator[StoredObject]:
        """Follow links; skip what is no file (pipes, dangling links) and what a broken write left behind."""
        stem = uri.rpartition("/")[2]
        return _walk(uri.removesuffix(stem), stem, frozenset())

    def folders(self, uri: str) -> Sequence[str]:
        """Look at the folder alone; links to folders count."""
        with _translated(uri), os.scandir(_path(uri)) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())

    def stat(self, uri: str) -> StoredObject:
        """Look at the file; a folder is no object."""
        with _translated(uri):
            status = _path(uri).stat()
        if not stat.S_ISREG(status.st_mode):
            raise NotFound(f"{uri}: not a file")
        return _stored(uri, status)

    def read(self, uri: str) -> bytes:
        """Read the whole file. A pipe, whose writer may never come, is no object."""
        with _translated(uri):
            if stat.S_ISFIFO(_path(uri).stat().st_mode):
                raise NotFound(f"{uri}: not a file")
            return _path(uri).read_bytes()

    def open(self, stored: StoredObject) -> BinaryIO:
        """Open the file: one replaced by renaming is still read as it was, one that is overwritten raises."""
        try:
            with _translated(stored.uri):
                file = _File(stored)
        except NotFound as error:
            raise ObjectChanged(f"{stored.uri}: removed after it was listed") from error
        try:
            file.check()
        except ObjectChanged:
            file.close()
            raise
        return io.BufferedReader(file, COPY_BYTES)

    def write(self, uri: str, body: bytes | BinaryIO, *, if_absent: bool = False) -> bool:
        """Write a hidden temporary file beside the target, removed on failure, and rename it (`if_absent`: link it)."""
        path = _path(uri)
        with _translated(uri):
            path.parent.mkdir(parents=True, exist_ok=True)
            with _filled(path.parent, body) as temporary:
                written = _publish(temporary, path, if_absent)
            _sync_folder(path.parent)
        return written

    def exchange(self, uri: str, body: bytes, version: str | None) -> str | None:
        """Compare and rename under a lock (flock) that all exchanges in the folder share, on whatever machine."""
        path = _path(uri)
        with _translated(uri):
            path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(path.parent):
                current = _status(path)
                if version != (current and _version(current)):
                    return None
                with _filled(path.parent, body) as temporary:
                    if current:
                        _make_newer(temporary, current)
                    made = _version(temporary.stat())
                    temporary.replace(path)
                _sync_folder(path.parent)
        return made

    def reach(self, uri: str) -> None:
        """Do nothing: a file system answers at once, or says that it cannot."""

    def move(self, source: str, target: str) -> None:
        """Rename, so within one file system."""
        with _translated(source):
            _path(target).parent.mkdir(parents=True, exist_ok=True)
            _path(source).replace(_path(target))


class _File(io.FileIO):
    """One version of a file. A failing read (a lost network mount, a bad disk) is a StoreError, never bad content."""

    def __init__(self, stored: StoredObject) -> None:
        self._stored = stored
        super().__init__(_path(stored.uri))

    def check(self) -> None:
        """Raise ObjectChanged if the file was replaced before it was opened, or was written to since."""
        if _version(os.fstat(self.fileno())) != self._stored.version:
            raise ObjectChanged(f"{self._stored.uri}: replaced after it was listed")

    def readinto(self, buffer: "WriteableBuffer") -> int:
        with _translated(self._stored.uri):
            count = super().readinto(buffer)
            self.check()  # after each read: a file overwritten in the middle is not bad content either
        return count

    def readall(self) -> bytes:
        with _translated(self._stored.uri):
            content = super().readall()
            self.check()
        return content


def _path(uri: str) -> Path:
    return Path(uri.removeprefix("file://"))


def _stored(uri: str, status: os.stat_result) -> StoredObject:
    return StoredObject(uri, status.st_size, _version(status), int(status.st_mtime))


def _version(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}"


def _walk(folder: str, stem: str, above: frozenset[tuple[int, int]]) -> Iterator[StoredObject]:
    """Yield the files below `folder` ("" or ending in /) whose path there begins with `stem`.

    Links are followed, except to a folder that is already being walked (`above`: device and inode of each).
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
    except OSError:  # a link to itself; other faults show again when the file is opened
        return entry.name


def _file(uri: str) -> Iterator[StoredObject]:
    """Yield the file as an object; nothing if it vanished meanwhile, or is a dangling link, a pipe or a socket."""
    try:
        with _translated(uri):
            status = _path(uri).stat()
    except NotFound:
        return
    if stat.S_ISREG(status.st_mode):
        yield _stored(uri, status)


@contextmanager
def _filled(folder: Path, body: bytes | BinaryIO) -> Iterator[Path]:
    """Keep a temporary file with all of `body` on the disk while the block runs."""
    path = folder / f"{_TEMPORARY}{uuid.uuid4().hex}"
    try:
        with path.open("xb") as file:
            if isinstance(body, bytes):
                file.write(body)
            else:
                body.seek(0)
                shutil.copyfileobj(body, file, COPY_BYTES)
            file.flush()
            os.fsync(file.fileno())
        yield path
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Exclude all other exchanges in the folder while the block runs. The kernel releases a dead process's lock."""
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)  # NFS locks only files open for writing
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while not _lock(descriptor, folder):
            if time.monotonic() > deadline:
                raise StoreError(f"{folder / _LOCK}: locked by another process for {LOCK_SECONDS:g} s")
            time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        raise NoConditionalWrites(f"{folder}: its file system does not lock files") from error
    return True


def _status(path: Path) -> os.stat_result | None:
    """Look at the file as it is now; None where there is none. Opens it, because NFS may answer stat from its cache."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno())
    except FileNotFoundError:
        return None


def _make_newer(path: Path, current: os.stat_result) -> None:
    """Set a later time: two files of one size made within a tick of the file system's clock are still two versions."""
    status = path.stat()
    if status.st_mtime_ns <= current.st_mtime_ns:
        os.utime(path, ns=(status.st_atime_ns, current.st_mtime_ns + 1))


def _publish(temporary: Path, path: Path, if_absent: bool) -> bool:
    if if_absent:
        try:
            os.link(temporary, path)  # unlike a rename it fails if the name is taken: the first writer wins
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links: the last writer wins
            temporary.replace(path)
    else:
        temporary.replace(path)
    return True


def _sync_folder(folder: Path) -> None:
    """Make the new name as durable as the bytes."""
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
    except (NotADirectoryError, FileExistsError) as error:
        raise NotFound(f"{uri}: a file stands where a folder is needed") from error
    except IsADirectoryError as error:
        raise StoreError(f"{uri}: a folder stands where a file is needed") from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NotFound(f"{uri}: a link that leads in circles") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise AccessDenied(f"{uri}: {os.strerror(error.errno).lower()}") from error
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(f"{uri}: no space left on its disk; make room and run the same command again") from error
        raise StoreError(f"{uri}: {(error.strerror or str(error)).lower()}") from error
