"""The lease of a run folder: which driver is at work there, as its object says."""

import json
from dataclasses import dataclass
from typing import Any

from gradosr.errors import NotFound
from gradosr.store import Store, join

LEASE = "lease.json"


@dataclass(frozen=True)
class LeaseState:
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


def read_lease(store: Store, run_uri: str) -> LeaseState | None:
    """The lease as it is now; None where there is none."""
    try:
        document = json.loads(store.read(join(run_uri, LEASE)))
    except NotFound:
        return None
    return LeaseState(**{name: document[name] for name in LeaseState.__dataclass_fields__})
