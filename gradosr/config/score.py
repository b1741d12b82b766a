"""Score jobs."""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, StrictFloat, StrictInt

from gradosr.config.compute import RaySettings, Serving, Workers
from gradosr.config.inputs import MAX_PIXELS, Input
from gradosr.config.uris import Uri

Allowance = Annotated[StrictInt, Field(ge=0)] | Annotated[StrictFloat, Field(ge=0, lt=1)]
"""How many of a whole: a count (an integer), or a share of it (a number with a point, below 1)."""


class ScoreJob(Serving):
    """Score every image of an archive into a results folder."""

    input: Input
    """The archive."""
    output: Uri
    """Results folder or prefix; the same command again finishes a run."""
    workers: PositiveInt | Literal["auto"] | Workers = "auto"
    """auto: one per GPU, else by cores, of the cluster as it is at the start; {min, max} for one that grows."""
    features: Literal["none", "unknown", "all"] = "none"
    """Rows that store the penultimate features."""
    representation: Literal["none", "unknown", "all"] = "none"
    """Rows that store the gradient representation."""
    max_pixels: PositiveInt = MAX_PIXELS
    """Images of more pixels (by their header) are not decoded: status too_large."""
    max_attempts: PositiveInt = 3
    """Workers that may die over one shard before it is quarantined."""
    shard_timeout: PositiveFloat = 3600.0
    """Seconds after which a worker still busy with one shard is taken for hung and replaced."""
    drain_timeout: PositiveFloat = 60.0
    """Seconds that running shards get to finish when the run is asked to end (SIGTERM); no new ones are started."""
    retry_quarantined: bool = False
    """Try quarantined shards again."""
    max_bad_images: Allowance = 0.01
    """Images of the archive without a score, a count or a share, beyond which a finished run exits with 5."""
    max_bad_shards: Allowance = 0
    """Quarantined shards, a count or a share of the archive's, beyond which a finished run exits with 5."""
    price_per_hour: PositiveFloat | None = None
    """Of one worker, in any currency: what --dry-run reckons the cost with."""
    ray: RaySettings = RaySettings()
    runtime_env: dict[str, Any] = {}
    """Passed to Ray; its env_vars never reach run.json or a log."""
