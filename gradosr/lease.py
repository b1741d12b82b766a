"""The lease of a run folder: which driver is at work there, as its object says."""

import json
from dataclasses import dataclass
from typing import Any

from gradosr.errors import NotFound
from gradosr.store import Store, join

EXPIRES = 30.0
"""Seconds without a renewal after which another driver may take the run over."""


@dataclass(frozen=True)
class LeaseRecord:
    """lease.json."""

    token: str
    host: str
    pid: int
    job: str | None
    """Ray submission id of the driver, if it was submitted."""
    renewed_at: str
    """ISO 8601, by the driver's clock."""
    released: bool
    """Whether the driver ended."""
    progress: dict[str, Any]
    """Progress.facts() of the driver."""

    @property
    def holder(self) -> str:
        """For people."""
        return f"{self.host} (pid {self.pid}" + (f", job {self.job})" if self.job else ")")


def read_lease(store: Store, run_uri: str) -> LeaseRecord | None:
    """The lease as it is now; None where there is none."""
    try:
        document = json.loads(store.read(join(run_uri, "lease.json")))
    except NotFound:
        return None
    return LeaseRecord(**{name: document[name] for name in LeaseRecord.__dataclass_fields__})
