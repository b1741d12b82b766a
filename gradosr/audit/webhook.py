"""Reporting of a night whose gates tripped, by HTTP or by a command."""

import hashlib
import hmac
import json
import os
import subprocess
import time
import urllib.request

from gradosr.audit.nights import Night
from gradosr.config import ScreenJob, Webhook
from gradosr.errors import ConfigError, RunFailed, first_line

PAUSE = 1.0  # seconds before the second try of a webhook; doubled before each further one


def tell(job: ScreenJob, night: Night) -> None:
    """Report a night to the webhook and the command of the job.

    Raises ConfigError if the signing key is missing, RunFailed if the webhook or the command fails.
    """
    body = json.dumps({"output": job.output, **night.document()}).encode()
    if job.webhook:
        _post(job.webhook, body, f"{job.output}#{night.night}")
    if job.command:
        try:
            subprocess.run(job.command, input=body, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - the user's own
        except (OSError, subprocess.CalledProcessError) as error:
            raise RunFailed(
                f"command {job.command[0]}: {first_line(error)}; the next screening runs it again"
            ) from error


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


def _post(webhook: Webhook, body: bytes, identity: str) -> None:
    headers = {"Content-Type": "application/json", "Idempotency-Key": hashlib.sha256(identity.encode()).hexdigest()}
    if key := signing_key(webhook):
        headers["X-Gradosr-Signature"] = f"sha256={hmac.new(key, body, hashlib.sha256).hexdigest()}"
    request = urllib.request.Request(webhook.url, body, headers)  # noqa: S310 - http or https by its pattern
    for attempt in range(webhook.attempts):
        try:
            with urllib.request.urlopen(request, timeout=webhook.timeout):  # noqa: S310
                return
        except OSError as error:
            told = first_line(error)
            if attempt + 1 < webhook.attempts:
                time.sleep(PAUSE * 2**attempt)
    where = webhook.url.partition("?")[0]
    raise RunFailed(f"webhook {where}: {told} ({webhook.attempts} times); the next screening tells it again")
