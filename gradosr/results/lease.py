"""A lease that allows one driver per run: RUN/lease.json, taken by conditional writes and renewed while it works.

The lease avoids double work and shows who is working; the table would be right without it, because parts are
idempotent. The clocks of two machines are never compared: a lease is taken over if the waiting driver sees it unchanged
for EXPIRES seconds of its own clock. When the driver ends, lease.json stays behind, marked `released`, so that its last
progress can be read from the folder alone.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, NamedTuple

from pydantic import Field, TypeAdapter, ValidationError

from gradosr.errors import NoConditionalWrites, NotFound, RunActive, StoreError
from gradosr.store import Store, join
from gradosr.text import reason

EXPIRES = 30.0
"""Seconds without a renewal after which another driver may take over the run."""
RENEW = 10.0
"""Seconds between renewals."""
RELEASE = 10.0
"""Seconds that the end of a run waits for the lease to be released."""
WAIT = 40.0
"""Most seconds that a second driver waits to see whether the first is still alive."""
LOOK = 1.0
"""Seconds between two looks at the lease while waiting."""
TRIES = 5
"""Consecutive writes refused because others were faster, after which taking or renewing the lease is given up."""
JOB = "GRADOSR_JOB"
"""Environment variable that holds the submission id of a driver that runs as a Ray job."""
_NO_VERSION = "0" * 32  # has the form of an ETag, but matches no object


@dataclass(frozen=True)
class LeaseRecord:
    """The content of lease.json."""

    token: str
    """Random token that identifies a driver."""
    host: str
    pid: Annotated[int, Field(gt=0, lt=2**31)]
    job: str | None
    """Submission id of the driver's Ray job; None if it is not one."""
    renewed_at: str
    """Time of the last renewal, in ISO 8601, UTC."""
    released: bool
    """True if the driver ended in an orderly way."""
    progress: dict[str, Any]
    """The driver's facts at the last renewal."""
    machine: str | None = None
    """Boot id and process namespace; drivers with the same value see each other's pid. None if it is not known."""
    started: int | None = None
    """Clock ticks from boot to the driver's start. A pid can be reused, but not with the same start tick."""

    @property
    def holder(self) -> str:
        """The driver's host and pid, and its job if it has one, for people."""
        return f"{self.host} (pid {self.pid}" + (f", job {self.job})" if self.job else ")")

    def is_dead(self) -> bool:
        """Return whether the driver is known to have died: it ran on this machine, and its process is gone."""
        if self.machine is None or self.machine != _machine():
            return False
        try:
            state, started = _process(self.pid)
        except OSError:
            return not _exists(self.pid)
        return state in "ZX" or started != self.started


_RECORD = TypeAdapter(LeaseRecord)


def read_lease(store: Store, run_uri: str) -> LeaseRecord | None:
    """Read the lease of a run; None if there is none that can be read. Raises StoreError."""
    found = _look(store, join(run_uri, "lease.json"))
    return found.record if found else None


class Lease:
    """The lease of a run, held during a driver's work: `with Lease(store, run_uri, facts, say) as lease:`.

    The work calls `lease.check` from time to time. `facts` returns the progress to publish and is called from another
    thread; `say` shows the user a line. Entering raises RunActive if another driver is at work, and StoreError.
    """

    def __init__(
        self,
        store: Store,
        run_uri: str,
        facts: Callable[[], Mapping[str, Any]],
        say: Callable[[str], None],
    ) -> None:
        self.lost = threading.Event()
        """Event that is set once another driver has taken over the run."""
        self.waited = False
        """True if entering had to wait; another driver may have finished shards in the meantime."""
        self._store, self._run, self._uri = store, run_uri, join(run_uri, "lease.json")
        self._facts, self._say, self._job = facts, say, os.environ.get(JOB)
        self._token = uuid.uuid4().hex
        self._version: str | None = None  # version that our last write created
        self._conditional = True  # until the store shows otherwise
        self._renewed, self._failing = time.monotonic(), False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="gradosr-lease", daemon=True)

    def __enter__(self) -> "Lease":
        self._conditional = self._conditions_count()
        if self._conditional:
            self._acquire()
        else:
            self._say(
                f"{self._run}: the store has no conditional writes, so nothing keeps a second driver off this run: "
                "its table would be right, but shards would be scored twice"
            )
            self._write()
        self._renewed = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(RELEASE)
        if self._thread.is_alive():
            self._say(
                f"{self._uri}: not released within {RELEASE:g} s, as the store does not answer; it expires by itself"
            )

    def check(self) -> None:
        """Raise RunActive once another driver has taken over the run."""
        if self.lost.is_set():
            raise RunActive(
                f"{self._run}: another driver took this run over, because the lease was deleted or not renewed "
                f"for {EXPIRES:g} s; `gradosr status {self._run}` shows how far it is"
            )

    def _acquire(self) -> None:
        """Take the lease, or wait until its holder is seen to be dead, gone or alive."""
        held = self._take()
        if held is None:
            return
        self._say(f"{self._run}: held by {held.holder}; waiting up to {WAIT:g} s to see whether it is still at work")
        self.waited, since = True, time.monotonic()
        while True:
            time.sleep(LOOK)
            waited = time.monotonic() - since
            found = self._take(expired=held.version if waited >= EXPIRES else None)
            if found is None:
                return
            if found.version != held.version or waited >= WAIT:
                raise RunActive(
                    f"{self._run}: {found.holder} is at work on this run; "
                    f"`gradosr status {self._run}` shows how far it is"
                )

    def _take(self, expired: str | None = None) -> "_Found | None":
        """Try to take the lease; return None on success, else the lease found there.

        A lease in the version `expired` is taken over, and so is one that is released or whose driver is dead.
        """
        for _ in range(TRIES):
            found = _look(self._store, self._uri)
            if found and found.is_of(self._token):  # written by us, but the answer was lost
                self._version = found.version
                return None
            if found and found.version != expired and not found.is_free():
                return found
            self._version = self._store.exchange(self._uri, self._body(), found.version if found else None)
            if self._version is not None:
                return None
        raise StoreError(f"{self._uri}: changed by another process at every attempt; run this again")

    def _conditions_count(self) -> bool:
        """Return whether the store honours conditional writes, tested with a write that must be refused.

        A store that ignores the condition overwrites the lease of another driver, but on such a store there are no
        leases.
        """
        try:
            return self._store.exchange(self._uri, self._body(), _NO_VERSION) is None
        except NoConditionalWrites:
            return False

    def _keep(self) -> None:
        """Renew the lease until the work ends, and then release it."""
        while not self._ended.wait(RENEW):
            self._renew()
        self._renew(released=True)

    def _renew(self, *, released: bool = False) -> None:
        """Write the lease. A failure is retried at the next renewal: it stays ours until somebody takes it.

        The user is told once in a row of failures: of a store that is away when the lease may be taken, of all else
        at once.
        """
        try:
            self._write(released=released)
        except Exception as error:  # an unforeseen one would end the renewals unseen
            late = time.monotonic() - self._renewed > EXPIRES
            if not self._failing and (late or not isinstance(error, StoreError)):
                self._failing = True
                self._say(
                    f"{self._uri}: the lease is not renewed: {reason(error)}; it is tried again, but after "
                    f"{EXPIRES:g} s another driver may take the run over"
                )
        else:
            self._renewed, self._failing = time.monotonic(), False

    def _write(self, *, released: bool = False) -> None:
        """Write the current facts into the lease, but never over the lease of another driver."""
        if not self._conditional:
            self._store.write(self._uri, self._body(released=released))
            return
        for _ in range(TRIES):
            if self.lost.is_set():
                return
            version = self._store.exchange(self._uri, self._body(released=released), self._version)
            if version is not None:
                self._version = version
                return
            found = _look(self._store, self._uri)
            if found and not found.is_of(self._token):
                self.lost.set()
            self._version = found.version if found else None  # written but the answer was lost, or deleted

    def _body(self, *, released: bool = False) -> bytes:
        """Return the record as JSON; its renewal time makes each body, and thus each version, unique."""
        pid, machine = os.getpid(), _machine()
        record = LeaseRecord(
            token=self._token,
            host=socket.gethostname(),
            pid=pid,
            job=self._job,
            renewed_at=datetime.now(timezone.utc).isoformat(),
            released=released,
            progress=dict(self._facts()),
            machine=machine,
            started=_process(pid)[1] if machine else None,
        )
        return json.dumps(asdict(record), indent=2).encode()


class _Found(NamedTuple):
    """A lease that exists in the run folder."""

    version: str
    record: LeaseRecord | None
    """The record; None if it cannot be read as a lease, which expires like any other."""

    @property
    def holder(self) -> str:
        return self.record.holder if self.record else "an unknown driver"

    def is_of(self, token: str) -> bool:
        return self.record is not None and self.record.token == token

    def is_free(self) -> bool:
        return self.record is not None and (self.record.released or self.record.is_dead())


def _look(store: Store, uri: str) -> _Found | None:
    try:
        version = store.stat(uri).version  # read before the body, so that an exchange fails if the body is newer
        body = store.read(uri)
    except NotFound:
        return None
    try:
        return _Found(version, _RECORD.validate_json(body))
    except ValidationError:
        return _Found(version, None)


def _machine() -> str | None:
    """Return the boot id and process namespace; within them, a pid and its start identify a process. Linux only."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def _process(pid: int) -> tuple[str, int]:
    """Return the state letter of a process, and its start in clock ticks. Raises OSError if it is gone or hidden."""
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return fields[0].decode(), int(fields[19])


def _exists(pid: int) -> bool:
    """Return whether a process exists, by asking the kernel, because /proc may hide the processes of other users."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
