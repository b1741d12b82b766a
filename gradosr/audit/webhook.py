"""Reporting of a night whose gates tripped, by HTTP or by a command."""

import hashlib
import hmac
import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException

from gradosr.audit.nights import Night
from gradosr.config import ScreenJob, Webhook
from gradosr.errors import ConfigError, RunFailed, first_line
from gradosr.store.threads import within
from gradosr.text import reason

PAUSE = 1.0  # seconds before the second try of a webhook; doubled before each further one
COMMAND_SECONDS = 600.0  # after which a command is killed and counts as failed


def receivers(job: ScreenJob) -> list[str]:
    """Return which of `webhook` and `command` the job names."""
    return [receiver for receiver in ("webhook", "command") if getattr(job, receiver)]


def tell(job: ScreenJob, night: Night, receiver: str, attempts: int | None = None) -> None:
    """Report a night to one receiver of the job; a webhook is tried as often as it says, or `attempts` times.

    Raises ConfigError if the signing key is missing, RunFailed if the receiver does not take it.
    """
    identity = hashlib.sha256(f"{job.output}#{night.night}".encode()).hexdigest()
    body = json.dumps({"id": identity, "output": job.output, **night.document()}).encode()
    if receiver == "webhook" and job.webhook:
        _post(job.webhook, body, identity, attempts or job.webhook.attempts)
    else:
        _run(job.command, body)


def signing_key(webhook: Webhook) -> bytes | None:
    """Read the key that signs webhook bodies from the environment; None if the job names no key.

    Raises ConfigError if the named variable is not set; call this before work starts.
    """
    if webhook.key_env is None:
        return None
    key = os.environ.get(webhook.key_env)
    if not key:
        raise ConfigError(f"webhook.key_env: the environment has no {webhook.key_env}")
    return key.encode()


def _post(webhook: Webhook, body: bytes, identity: str, attempts: int) -> None:
    headers = {"Content-Type": "application/json", "Idempotency-Key": identity}
    if key := signing_key(webhook):
        headers["X-Gradosr-Signature"] = f"sha256={hmac.new(key, body, hashlib.sha256).hexdigest()}"
    request = urllib.request.Request(webhook.url, body, headers)  # noqa: S310 - http or https by its pattern
    for attempt in range(attempts):
        try:
            return within(webhook.timeout, lambda _: _send(request, webhook.timeout))
        except (OSError, HTTPException) as error:  # the latter where what answers does not speak HTTP
            told = reason(error)
            if attempt + 1 < attempts:
                time.sleep(PAUSE * 2**attempt)
    where = webhook.url.partition("?")[0]
    raise RunFailed(f"webhook {where}: {told} ({attempts} times); the next screening tells it again")


def _send(request: urllib.request.Request, seconds: float) -> None:
    with urllib.request.urlopen(request, timeout=seconds):  # noqa: S310 - as above
        pass


def _run(command: Sequence[str], body: bytes) -> None:
    try:
        subprocess.run(command, input=body, check=True, stdout=subprocess.DEVNULL, timeout=COMMAND_SECONDS)  # noqa: S603 - the user's own
    except (OSError, subprocess.SubprocessError) as error:
        raise RunFailed(f"command {command[0]}: {first_line(error)}; the next screening runs it again") from error
