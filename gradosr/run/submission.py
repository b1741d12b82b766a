"""Submission of runs as jobs of a Ray cluster through Ray's Jobs API: submit, inspect, follow, stop.

A job's id is gradosr-HASH-ATTEMPT. HASH depends on config and bundle alone, so that the same command finds its earlier
attempts, whoever runs it and from wherever. Two simultaneous submissions ask for the same id, and Ray accepts the
first.
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
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from gradosr.config import ScoreJob
from gradosr.config.settings import as_yaml
from gradosr.errors import ConfigError, InputError, RunActive, RunFailed, first_line, system_reason
from gradosr.results.lease import JOB
from gradosr.run.tail import Lines
from gradosr.store.threads import UPLOAD_BYTES, within

ADDRESS = "http://127.0.0.1:8265"
CONFIG = "job.yaml"
# The installed command, not `python -m`: it is also found in a virtual environment made by runtime_env, and it ignores
# packages in the working directory.
ENTRYPOINT = f"gradosr score {CONFIG} --set ray.address=auto"
STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"  # whole seconds between SIGTERM and SIGKILL; Ray reads it from the job's env
MARGIN = 30.0  # seconds beyond drain_timeout in which a driver can write its last results
REQUEST = 60.0  # seconds after which an unanswered request is given up
POLL = 1.0  # seconds between two queries of a job's state
SILENCE = 60.0  # seconds without a line after which the log is reconnected
PATIENCE = 120.0  # seconds that a cluster may be unreachable before following its job ends
NOT_FOUND, TERMINATED = 127, 143  # a shell's exit codes

T = TypeVar("T")

_ID = re.compile(r"gradosr-([0-9a-f]{12})-([1-9][0-9]*)")


@dataclass(frozen=True)
class SubmittedJob:
    """One attempt at a run, as its cluster knows it."""

    id: str
    state: str
    """State of the job: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
    message: str
    """The cluster's message about the state, or the last log line of a job that failed; one line."""
    exit_code: int | None
    """Exit code of `gradosr score`; 143 if the job was stopped, 1 if it failed before it began; None until it ends."""
    submitted_at: str
    """Time of submission in ISO 8601, by the cluster's clock."""
    name: str
    output: str
    """URI of the run folder."""
    store: str
    """Settings with which the run folder is reached: StoreFields as JSON."""
    stop_wait: float
    """Seconds that the job is given to end when it is stopped."""

    @property
    def ended(self) -> bool:
        """True if the state is final."""
        return self.exit_code is not None

    @property
    def identity(self) -> str:
        """The HASH in the id, which depends on config and bundle."""
        return self.id.split("-")[1]

    @property
    def attempt(self) -> int:
        """The number of the attempt, from 1."""
        return int(self.id.split("-")[2])

    def facts(self) -> dict[str, Any]:
        """Return the job as plain data for a JSON document."""
        names = ("id", "name", "state", "message", "exit_code", "submitted_at", "output")
        return {name: getattr(self, name) for name in names}


class Cluster:
    """The job server of a Ray cluster. Every method raises InputError if it is unreachable or refuses the request."""

    def __init__(self, address: str | None = None) -> None:
        self.address = _job_server(address)
        os.environ["RAY_API_SERVER_ADDRESS"] = self.address  # Ray would let the environment override the argument
        for handler in logging.getLogger("ray").handlers:
            handler.setLevel(logging.WARNING)  # messages on uploads and closed connections are noise
        with self._translated():
            self._client = _Client(self.address)

    def submit(self, job: ScoreJob, digest: str, name: str) -> SubmittedJob:
        """Start the next attempt at the run of `job` with the bundle of the given digest.

        Raises RunActive while the newest attempt is alive, ConfigError for a runtime_env that Ray rejects.
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
        with TemporaryDirectory() as folder:
            (Path(folder) / CONFIG).write_text(as_yaml(_document(job)), encoding="utf-8")
            environment = {STOP_WAIT: stop_wait, JOB: attempt, **job.runtime_env.get("env_vars", {})}
            runtime_env = {**job.runtime_env, "working_dir": folder, "env_vars": environment}
            self._patiently(lambda: self._start(attempt, runtime_env, metadata), _NoAgent)
        return self.job(attempt)

    def _start(self, attempt: str, runtime_env: dict[str, Any], metadata: dict[str, str]) -> None:
        """Hand one attempt to the job server. Raises _NoAgent while no node can take it."""
        with self._translated(attempt):
            try:
                self._client.submit_job(
                    entrypoint=ENTRYPOINT, submission_id=attempt, runtime_env=runtime_env, metadata=metadata
                )
            except (TypeError, ValueError) as error:
                raise ConfigError(f"runtime_env: {first_line(error)}") from error

    def jobs(self) -> list[SubmittedJob]:
        """Return all attempts at all runs that the cluster remembers, newest first."""
        with self._translated():
            known = self._client.list_jobs()
        ours = [_submitted(details) for details in known if _ID.fullmatch(details.submission_id or "")]
        return sorted(ours, key=lambda one: one.submitted_at, reverse=True)

    def job(self, name: str) -> SubmittedJob:
        """Return the job with the given id as it is now. Raises InputError if there is none."""
        if not _ID.fullmatch(name):
            raise InputError(f"{name}: not the id of a job of gradosr: gradosr-HASH-ATTEMPT")
        with self._translated(name):
            return _submitted(self._client.get_job_info(name))

    def log(self, name: str) -> str:
        """Return everything that the job has logged so far."""
        with self._translated(name):
            return str(self._client.get_job_logs(name))

    def follow(self, name: str, say: Callable[[str], None]) -> SubmittedJob:
        """Pass each line of the log to `say`, once, until the job has ended; return the job in its final state.

        Lost connections are renewed, and the cluster itself may be unreachable for PATIENCE seconds.
        """
        lines = Lines(say)
        while not (job := self._patiently(lambda: self.job(name), _Unreachable)).ended:
            lines.rewind()
            asyncio.run(self._tail(name, lines.take))
            time.sleep(POLL)
        lines.rewind()
        lines.take(self._patiently(lambda: self.log(name), _Unreachable))
        lines.end()
        return job

    def stop(self, name: str) -> SubmittedJob:
        """Ask the job to end and wait until it has. Raises RunFailed if it does not end within its bound."""
        job = self.job(name)
        deadline = time.monotonic() + job.stop_wait + MARGIN
        while not job.ended:
            with self._translated(name):
                self._client.stop_job(name)  # repeated, because a job that has not started yet ignores it
            time.sleep(POLL)
            job = self._patiently(lambda: self.job(name), _Unreachable)
            if time.monotonic() > deadline and not job.ended:
                raise RunFailed(f"{name}: still {job.state}, {job.stop_wait + MARGIN:g} s after it was asked to end")
        return job

    async def _tail(self, name: str, take: Callable[[str], None]) -> None:
        """Pass the log to `take` from its beginning as it grows.

        Returns when the job ends, or when the connection breaks or is silent.
        """
        chunks = self._client.tail_job_logs(name)
        while True:
            try:
                text = await asyncio.wait_for(chunks.__anext__(), SILENCE)
            except Exception:  # the log ended or the connection broke; the job's state tells which
                return
            take(text)

    def _patiently(self, ask: Callable[[], T], passing: type[InputError]) -> T:
        """Return the answer of `ask`, asking again for up to PATIENCE seconds while it raises `passing`."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return ask()
            except passing:
                if time.monotonic() > deadline:
                    raise
                time.sleep(POLL)

    @contextmanager
    def _translated(self, job: str = "") -> Iterator[None]:
        """Translate the errors of Ray's client into ours."""
        try:
            yield
        except AuthenticationError as error:
            reason = first_line(error).partition(". ")[0]  # Ray's own advice fills a screen
            advice = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or ~/.ray/auth_token to the cluster's token"
            raise InputError(f"{self.address}: {reason}: {advice}") from error
        except OSError as error:  # includes the errors of requests
            reason = system_reason(error) or type(error).__name__
            raise _Unreachable(
                f"{self.address}: no Ray job server answers there ({reason}): give --address http://HEAD:8265"
            ) from error
        except RuntimeError as error:
            raise _refusal(str(error), self.address, job) from error
        except (KeyError, ValueError) as error:
            raise InputError(f"{self.address}: no Ray job server answers there: {first_line(error)}") from error


class _Client(JobSubmissionClient):
    """Ray's client with a time limit on each request; without it, requests wait for ever."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        ask = partial(super()._do_request, method, endpoint, timeout=REQUEST, **options)
        return within(REQUEST, lambda _: ask(), len(options.get("data") or b"") / UPLOAD_BYTES)


class _Unreachable(InputError):
    """An error for an address at which nothing answers, perhaps only for now."""


class _NoAgent(InputError):
    """An error for a cluster whose nodes take no job yet: one that has just started, or is busy."""


def _job_server(address: str | None) -> str:
    driver = os.environ.get("RAY_ADDRESS", "")
    address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or (driver if driver.startswith("http") else ADDRESS)
    if "://" not in address:
        address = f"http://{address}"
    if not address.startswith(("http://", "https://")):
        raise ConfigError(f"--address {address}: jobs go to the dashboard of the cluster: http://HEAD:8265")
    return address.rstrip("/")


def _document(job: ScoreJob) -> dict[str, Any]:
    """Return the config to send, as it was given, so that another version of gradosr on the cluster can read it.

    It leaves out `ray`, which the cluster decides, and `runtime_env`, which Ray carries: its env_vars may be secrets.
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
    if details.status == JobStatus.STOPPED:  # Ray keeps no exit code for such a job
        return TERMINATED
    if details.status == JobStatus.SUCCEEDED:
        return 0
    if details.status == JobStatus.FAILED:
        code = details.driver_exit_code or 1
        return code if code > 0 else 128 - code  # killed by a signal
    return None


def _message(details: JobDetails) -> str:
    lines = [line.strip() for line in (details.message or "").splitlines() if line.strip()] or [""]
    if details.driver_exit_code == NOT_FOUND:
        return f"gradosr is not installed on the cluster, or not on the PATH that `ray start` had: {lines[-1]}"
    if details.driver_exit_code:  # Ray's message quotes the end of the log
        return lines[-1].removeprefix("gradosr: ")
    return " ".join(dict.fromkeys((lines[0], lines[-1])))  # the event, and the last line of a traceback


def _refusal(answer: str, address: str, job: str) -> InputError | RunActive:
    """Return the error that the job server's answer stands for; the answer is text that may end in a traceback."""
    if "No available agent" in answer:
        return _NoAgent(f"{address}: no node of the cluster takes jobs yet; submit it again")
    if "already exists" in answer:
        return RunActive(f"{job}: another command submitted the same run to {address} at this moment")
    if job and "status code 404" in answer:
        return InputError(f"{job}: no such job on {address}; `gradosr status` lists those it knows")
    last = [line.strip() for line in answer.splitlines() if line.strip()][-1]
    return InputError(f"{address}: {last}")
