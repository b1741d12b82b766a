"""One driver per run: RUN/lease.json, taken by conditional writes and renewed for as long as the driver works.

It spares work and says who is at it; the table is right without it, because parts are idempotent. Clocks of two
machines are never compared: a lease that a waiter sees unchanged for EXPIRES seconds of its own clock is taken over.
lease.json stays behind the driver, `released`, so that its last progress can be read from the folder alone.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, NamedTuple

from pydantic import Field, TypeAdapter, ValidationError

from gradosr.errors import NoConditionalWrites, NotFound, RunActive, StoreError
from gradosr.store import Store, join

EXPIRES = 30.0
"""Seconds without a renewal after which another driver may take the run over."""
RENEW = 10.0
"""Seconds between renewals."""
WAIT = 40.0
"""Seconds that a second driver waits at most to see whether the first still lives."""
LOOK = 1.0
"""Seconds between its looks."""
TRIES = 5
"""Writes that are refused in a row, because others were faster, before one is given up."""
JOB = "GRADOSR_JOB"
"""Environment variable of a driver that is a Ray job: its submission id."""
_NO_VERSION = "0" * 32  # in the form of an ETag, and of no object


@dataclass(frozen=True)
class LeaseRecord:
    """lease.json."""

    token: str
    """Drawn anew by each driver."""
    host: str
    pid: Annotated[int, Field(gt=0, lt=2**31)]
    job: str | None
    """Submission id of the Ray job that the driver is, if it is one."""
    renewed_at: str
    """ISO 8601, UTC."""
    released: bool
    """Whether the driver ended in order."""
    progress: dict[str, Any]
    """The driver's facts at the last renewal."""
    machine: str | None = None
    """Boot and process namespace: drivers of one `machine` see each other's pid. None where that is not known."""
    started: int | None = None
    """Clock ticks from the boot to the driver's start: a pid is given again, but not at the same tick."""

    @property
    def holder(self) -> str:
        """For people."""
        return f"{self.host} (pid {self.pid}" + (f", job {self.job})" if self.job else ")")

    def is_dead(self) -> bool:
        """Whether the driver is known to have died: it ran on this machine, and its process is gone."""
        if self.machine is None or self.machine != _machine():
            return False
        try:
            state, started = _process(self.pid)
        except OSError:
            return not _exists(self.pid)
        return state in "ZX" or started != self.started


_RECORD = TypeAdapter(LeaseRecord)


def read_lease(store: Store, run_uri: str) -> LeaseRecord | None:
    """The lease of a run; None where there is none, or none that can be read. Raises StoreError."""
    found = _look(store, join(run_uri, "lease.json"))
    return found.record if found else None


class Lease:
    """`with Lease(store, run_uri, facts, say) as lease:` stands around a driver's work, which calls `lease.check`.

    `facts` gives the progress to publish, called from another thread; `say` tells the user a line. Entering raises
    RunActive when another driver is at work, and StoreError.
    """

    def __init__(
        self,
        store: Store,
        run_uri: str,
        facts: Callable[[], Mapping[str, Any]],
        say: Callable[[str], None],
    ) -> None:
        self.lost = threading.Event()
        """Set once another driver has taken the run over."""
        self.waited = False
        """Whether entering had to wait: another driver may have finished shards meanwhile."""
        self._store, self._run, self._uri = store, run_uri, join(run_uri, "lease.json")
        self._facts, self._say, self._job = facts, say, os.environ.get(JOB)
        self._token = uuid.uuid4().hex
        self._version: str | None = None  # what our last write made
        self._conditional = True  # unless the store shows otherwise
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
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(RENEW)  # where the store does not answer, the lease expires by itself

    def check(self) -> None:
        """Raise RunActive once another driver has taken the run over."""
        if self.lost.is_set():
            raise RunActive(
                f"{self._run}: another driver took this run over, because the lease was deleted or not renewed "
                f"for {EXPIRES:g} s; `gradosr status {self._run}` shows how far it is"
            )

    def _acquire(self) -> None:
        """Take the lease, or wait until whoever holds it is seen to be dead, gone or alive."""
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
        """None: it is ours. Else who holds it, in another version than `expired`."""
        for _ in range(TRIES):
            found = _look(self._store, self._uri)
            if found and found.is_of(self._token):  # our own write, whose answer was lost
                self._version = found.version
                return None
            if found and found.version != expired and not found.is_free():
                return found
            self._version = self._store.exchange(self._uri, self._body(), found.version if found else None)
            if self._version is not None:
                return None
        raise StoreError(f"{self._uri}: replaced by others each time that it was looked at; run this again")

    def _conditions_count(self) -> bool:
        """Whether the store heeds the condition of a write, shown by one that must be refused.

        One that ignores it takes our record for written, over that of another driver, who has no lease there either.
        """
        try:
            return self._store.exchange(self._uri, self._body(), _NO_VERSION) is None
        except NoConditionalWrites:
            return False

    def _keep(self) -> None:
        """Renew until the end, and then release."""
        while not self._ended.wait(RENEW):
            with suppress(StoreError):  # tried again: as long as nobody takes it, it is ours
                self._write()
        with suppress(StoreError):
            self._write(released=True)

    def _write(self, *, released: bool = False) -> None:
        """Put the present facts into the lease; never over that of another."""
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
            self._version = found.version if found else None  # written, but the answer was lost; or deleted

    def _body(self, *, released: bool = False) -> bytes:
        """No two are the same, so no two have the same version."""
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
    """A lease that is there."""

    version: str
    record: LeaseRecord | None
    """None: not a lease that can be read; it expires as any other."""

    @property
    def holder(self) -> str:
        return self.record.holder if self.record else "an unknown driver"

    def is_of(self, token: str) -> bool:
        return self.record is not None and self.record.token == token

    def is_free(self) -> bool:
        return self.record is not None and (self.record.released or self.record.is_dead())


def _look(store: Store, uri: str) -> _Found | None:
    try:
        version = store.stat(uri).version  # before the body: with a body newer than its version no exchange succeeds
        body = store.read(uri)
    except NotFound:
        return None
    try:
        return _Found(version, _RECORD.validate_json(body))
    except ValidationError:
        return _Found(version, None)


def _machine() -> str | None:
    """Within one boot and process namespace a pid and its start time are one process. Linux alone tells."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def _process(pid: int) -> tuple[str, int]:
    """State letter, and clock ticks from the boot to the start. Raises OSError where it is gone or hidden."""
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return fields[0].decode(), int(fields[19])


def _exists(pid: int) -> bool:
    """Asked of the kernel, because /proc may be mounted so that it hides the processes of other users."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
