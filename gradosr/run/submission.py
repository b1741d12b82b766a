"""Runs as jobs of a Ray cluster, through Ray's Jobs API: submit, look, follow, stop.

A job's id is gradosr-HASH-ATTEMPT. HASH is of config and bundle alone, so that the same command meets its earlier
attempts, whoever gives it and from wherever; two that submit at once want the same id, and Ray takes the first.
"""

import asyncio
import hashlib
import json
import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import yaml
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from gradosr.config import ScoreJob
from gradosr.errors import ConfigError, InputError, RunActive, RunFailed, first_line, system_reason
from gradosr.results.lease import JOB
from gradosr.store import is_s3

ADDRESS = "http://127.0.0.1:8265"
CONFIG = "job.yaml"
# The installed command, not `python -m`: found in a virtual environment that runtime_env makes too, and deaf to
# packages in the working directory.
ENTRYPOINT = f"gradosr score {CONFIG} --set ray.address=auto"
STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"  # whole seconds between SIGTERM and SIGKILL, which Ray reads from the job's env
MARGIN = 30.0  # seconds beyond drain_timeout for a driver to write what is left
REQUEST = 60.0  # seconds until an unanswered request is given up
POLL = 1.0  # seconds between questions for a job's state
SILENCE = 60.0  # seconds without a line after which the log's connection is made anew
PATIENCE = 120.0  # seconds for which a cluster may be out of reach before following its job ends
NOT_FOUND, TERMINATED = 127, 143  # a shell's exit codes

T = TypeVar("T")

_ID = re.compile(r"gradosr-([0-9a-f]{12})-([1-9][0-9]*)")


@dataclass(frozen=True)
class SubmittedJob:
    """One attempt at a run, as its cluster knows it."""

    id: str
    state: str
    """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
    message: str
    """What the cluster says of the state, or the last line of the log of a job that failed; one line."""
    exit_code: int | None
    """Of `gradosr score`; 143 when the job was stopped, 1 when it failed before it began; None while it lives."""
    submitted_at: str
    """ISO 8601, by the cluster's clock."""
    name: str
    output: str
    """The run folder."""
    store: str
    """How it is reached: StoreFields as JSON."""
    stop_wait: float
    """Seconds that it gets to end when it is stopped."""

    @property
    def ended(self) -> bool:
        """Whether the state is its last."""
        return self.exit_code is not None

    @property
    def identity(self) -> str:
        """HASH, of config and bundle."""
        return self.id.split("-")[1]

    @property
    def attempt(self) -> int:
        """From 1."""
        return int(self.id.split("-")[2])

    def facts(self) -> dict[str, Any]:
        """For a JSON document."""
        names = ("id", "name", "state", "message", "exit_code", "submitted_at", "output")
        return {name: getattr(self, name) for name in names}


class Cluster:
    """The job server of a Ray cluster. Every method raises InputError when it cannot be reached or refuses us."""

    def __init__(self, address: str | None = None) -> None:
        self.address = _job_server(address)
        os.environ["RAY_API_SERVER_ADDRESS"] = self.address  # Ray would let the environment override the argument
        for handler in logging.getLogger("ray").handlers:
            handler.setLevel(logging.WARNING)  # uploads and closed connections are nobody's news
        with self._translated():
            self._client = _Client(self.address)

    def submit(self, job: ScoreJob, digest: str, name: str) -> SubmittedJob:
        """Start the next attempt at the run of `job` and the bundle of that digest.

        Raises RunActive while the newest attempt lives, ConfigError for a runtime_env that Ray does not take.
        """
        identity = _identity(job, digest)
        newest = max((one for one in self.jobs() if one.identity == identity), key=_attempt, default=None)
        if newest and not newest.ended:
            raise RunActive(
                f"{newest.id}: the same run is {newest.state} on {self.address}; "
                f"`gradosr logs -f {newest.id}` follows it, `gradosr cancel {newest.id}` ends it"
            )
        attempt = f"gradosr-{identity}-{newest.attempt + 1 if newest else 1}"
        stop_wait = str(math.ceil(job.drain_timeout + MARGIN))
        metadata = {"name": name, "output": job.output, "hash": identity, "stop_wait": stop_wait}
        metadata["store"] = job.model_dump_json(include={"store", "stores"}, exclude_unset=True)
        with TemporaryDirectory() as folder, self._translated(attempt):
            (Path(folder) / CONFIG).write_text(yaml.safe_dump(_document(job), sort_keys=False), encoding="utf-8")
            environment = {STOP_WAIT: stop_wait, JOB: attempt, **job.runtime_env.get("env_vars", {})}
            runtime_env = {**job.runtime_env, "working_dir": folder, "env_vars": environment}
            try:
                self._client.submit_job(
                    entrypoint=ENTRYPOINT, submission_id=attempt, runtime_env=runtime_env, metadata=metadata
                )
            except (TypeError, ValueError) as error:
                raise ConfigError(f"runtime_env: {first_line(error)}") from error
        return self.job(attempt)

    def jobs(self) -> list[SubmittedJob]:
        """All attempts at all runs that the cluster remembers, newest first."""
        with self._translated():
            known = self._client.list_jobs()
        ours = [_submitted(details) for details in known if _ID.fullmatch(details.submission_id or "")]
        return sorted(ours, key=lambda one: one.submitted_at, reverse=True)

    def job(self, name: str) -> SubmittedJob:
        """The job of that id as it is now. Raises InputError when there is none."""
        if not _ID.fullmatch(name):
            raise InputError(f"{name}: not the id of a job of gradosr: gradosr-HASH-ATTEMPT")
        with self._translated(name):
            return _submitted(self._client.get_job_info(name))

    def log(self, name: str) -> str:
        """What the job has written so far."""
        with self._translated(name):
            return str(self._client.get_job_logs(name))

    def follow(self, name: str, say: Callable[[str], None]) -> SubmittedJob:
        """Say each line of the log, once, until the job has ended; the job as it ended.

        Lost connections are made anew, the cluster itself may be out of reach for PATIENCE seconds.
        """
        lines = _Lines(say)
        while not (job := self._patiently(lambda: self.job(name))).ended:
            lines.rewind()
            asyncio.run(self._tail(name, lines.take))
            time.sleep(POLL)
        lines.rewind()
        lines.take(self._patiently(lambda: self.log(name)))
        lines.end()
        return job

    def stop(self, name: str) -> SubmittedJob:
        """Ask the job to end and wait until it has. Raises RunFailed when it has not within its bound."""
        job = self.job(name)
        deadline = time.monotonic() + job.stop_wait + MARGIN
        while not job.ended:
            with self._translated(name):
                self._client.stop_job(name)  # again and again: a job that is not started yet does not hear it
            time.sleep(POLL)
            job = self._patiently(lambda: self.job(name))
            if time.monotonic() > deadline and not job.ended:
                raise RunFailed(f"{name}: still {job.state}, {job.stop_wait + MARGIN:g} s after it was asked to end")
        return job

    async def _tail(self, name: str, take: Callable[[str], None]) -> None:
        """Take the log from its beginning as it grows, until the job ends, or the connection breaks or is silent."""
        chunks = self._client.tail_job_logs(name)
        while True:
            try:
                text = await asyncio.wait_for(chunks.__anext__(), SILENCE)
            except Exception:  # its end, or whatever broke it: the job's state tells which
                return
            take(text)

    def _patiently(self, ask: Callable[[], T]) -> T:
        """The answer, asked for again while the cluster is out of reach, for PATIENCE seconds."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return ask()
            except _Unreachable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(POLL)

    @contextmanager
    def _translated(self, job: str = "") -> Iterator[None]:
        """What Ray's client raises, as our errors."""
        try:
            yield
        except AuthenticationError as error:
            reason = first_line(error).partition(". ")[0]  # Ray's own advice fills a screen
            advice = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or ~/.ray/auth_token to the cluster's token"
            raise InputError(f"{self.address}: {reason}: {advice}") from error
        except OSError as error:  # the errors of requests are such
            reason = system_reason(error) or type(error).__name__
            raise _Unreachable(
                f"{self.address}: no Ray job server answers there ({reason}): give --address http://HEAD:8265"
            ) from error
        except RuntimeError as error:
            raise _refusal(str(error), self.address, job) from error
        except (KeyError, ValueError) as error:
            raise InputError(f"{self.address}: does not answer as a Ray job server: {first_line(error)}") from error


class _Client(JobSubmissionClient):
    """Ray's client with a bound to each request: its own wait for ever."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        return super()._do_request(method, endpoint, timeout=REQUEST, **options)


class _Unreachable(InputError):
    """Nothing answers at the address, perhaps only for now."""


class _Lines:
    """Lines of a text that comes in pieces and may begin again; each is said once, when it is whole."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._said = 0
        self.rewind()

    def rewind(self) -> None:
        """The text begins again."""
        self._line, self._rest = 0, ""

    def take(self, text: str) -> None:
        """The next piece."""
        *whole, self._rest = (self._rest + text).split("\n")
        for line in whole:
            self._line += 1
            if self._line > self._said:
                self._said = self._line
                self._say(line)

    def end(self) -> None:
        """Nothing more comes: a last line without an end is whole."""
        if self._rest:
            self.take("\n")


def _job_server(address: str | None) -> str:
    driver = os.environ.get("RAY_ADDRESS", "")
    address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or (driver if driver.startswith("http") else ADDRESS)
    if "://" not in address:
        address = f"http://{address}"
    if not address.startswith(("http://", "https://")):
        raise ConfigError(f"--address {address}: jobs go to the dashboard of the cluster: http://HEAD:8265")
    return address.rstrip("/")


def check_travel(job: ScoreJob) -> None:
    """Raise ConfigError for what would not be there on the cluster's nodes, everything at once."""
    uris = {"bundle": job.bundle, "input.uri": job.input.uri, "output": job.output}
    if isinstance(job.input.label_names, str):
        uris["input.label_names"] = job.input.label_names
    faults = [
        f"{field}: {uri} is a local path; the nodes of a cluster see s3:// only"
        for field, uri in uris.items()
        if not is_s3(uri)
    ]
    if "working_dir" in job.runtime_env:
        faults.append("runtime_env.working_dir: the config itself travels as that; list folders of code as py_modules")
    if faults:
        raise ConfigError("\n".join(faults))


def _document(job: ScoreJob) -> dict[str, Any]:
    """The config that travels: as it was given, so that another version of gradosr on the cluster reads it too.

    Without `ray`, which the cluster answers, and `runtime_env`, which Ray carries: its env_vars may be secrets.
    """
    return job.model_dump(mode="json", exclude_unset=True, exclude={"ray", "runtime_env"})


def _identity(job: ScoreJob, digest: str) -> str:
    return hashlib.sha256(json.dumps([_document(job), digest], sort_keys=True).encode()).hexdigest()[:12]


def _attempt(job: SubmittedJob) -> int:
    return job.attempt


def _submitted(details: JobDetails) -> SubmittedJob:
    metadata = details.metadata or {}
    submitted = datetime.fromtimestamp((details.start_time or 0) / 1000, timezone.utc)
    return SubmittedJob(
        id=details.submission_id or "",
        state=details.status.value,
        message=_message(details),
        exit_code=_exit_code(details),
        submitted_at=submitted.isoformat(timespec="seconds"),
        name=metadata.get("name", ""),
        output=metadata.get("output", ""),
        store=metadata.get("store", ""),
        stop_wait=float(metadata.get("stop_wait", MARGIN)),
    )


def _exit_code(details: JobDetails) -> int | None:
    if details.status == JobStatus.STOPPED:  # Ray keeps no code of such a job
        return TERMINATED
    if details.status == JobStatus.SUCCEEDED:
        return 0
    if details.status == JobStatus.FAILED:
        code = details.driver_exit_code or 1
        return code if code > 0 else 128 - code  # died of a signal
    return None


def _message(details: JobDetails) -> str:
    lines = [line.strip() for line in (details.message or "").splitlines() if line.strip()] or [""]
    if details.driver_exit_code == NOT_FOUND:
        return f"gradosr is not installed on the cluster, or not on the PATH that `ray start` had: {lines[-1]}"
    if details.driver_exit_code:  # Ray quotes the end of its log
        return lines[-1].removeprefix("gradosr: ")
    return " ".join(dict.fromkeys((lines[0], lines[-1])))  # what befell it, and at the end of a traceback why


def _refusal(answer: str, address: str, job: str) -> InputError | RunActive:
    """What the job server's answer means; it comes as text, in which a traceback may end."""
    if "already exists" in answer:
        return RunActive(f"{job}: another command submitted the same run to {address} at this moment")
    if job and "status code 404" in answer:
        return InputError(f"{job}: no such job on {address}; `gradosr status` lists those it knows")
    last = [line.strip() for line in answer.splitlines() if line.strip()][-1]
    return InputError(f"{address}: {last}")
