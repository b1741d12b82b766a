"""Settings of score jobs."""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, StrictFloat, StrictInt, model_validator

from gradosr.config.compute import DeviceName, RaySettings, Serving, Workers
from gradosr.config.embedder import EmbedderSettings
from gradosr.config.inputs import MAX_PIXELS, ResultsInput, ScoreInput
from gradosr.config.settings import Settings
from gradosr.config.uris import Uri

Allowance = Annotated[StrictInt, Field(ge=0)] | Annotated[StrictFloat, Field(ge=0, lt=1)]
"""Part of a whole: a count (an integer) or a share (a decimal number below 1)."""


_OF_IMAGES = ("precision", "features", "representation", "signals", "embedder", "max_pixels")
"""Settings of a pass through the classifier, which does not take place if signals are scored again."""


class Sample(Settings):
    """All images over the threshold and some of the others."""

    sample: Annotated[StrictInt, Field(ge=2)]
    """Number of other images of which one is drawn, by a hash of its key."""


class ScoreJob(Serving):
    """Score every image of an archive into a results folder."""

    input: ScoreInput
    """The archive to score, or the results of one (kind: results) to score again with another bundle."""
    output: Uri
    """Results folder or prefix; running the same command again completes an unfinished run."""
    workers: PositiveInt | Literal["auto"] | Workers = "auto"
    """Number of workers; auto: one per GPU, or else by the cores of the cluster at the start; {min, max} for a cluster
    that grows."""
    features: Literal["none", "unknown", "all"] = "unknown"
    """Rows for which the penultimate features are stored; `unknown` are those over the threshold. An audit clusters
    images by them, and a screening finds candidate classes."""
    representation: Literal["none", "unknown", "all"] = "none"
    """Rows for which the gradient representation is stored."""
    signals: Literal["none", "unknown", "all"] | Sample = "none"
    """Rows for which everything that the detector sees is stored, so that one can learn from labels and score again
    without the images; {sample: N} stores it for images over the threshold and one in N of the others."""
    embedder: EmbedderSettings | None = None
    """Second network, whose features are stored as `embedding`, in which an audit then finds clusters: of the
    images over the threshold, and of the others for which `features` or `signals` are stored."""
    max_pixels: PositiveInt = MAX_PIXELS
    """Largest image, in pixels according to its header, that is decoded; others get status too_large."""
    max_attempts: PositiveInt = 3
    """Number of worker failures on one shard after which it is quarantined."""
    shard_timeout: PositiveFloat = 3600.0
    """Seconds after which a worker still busy with one shard is considered hung and replaced."""
    drain_timeout: PositiveFloat = 60.0
    """Seconds that running shards may take to finish after SIGTERM; no new ones are started."""
    retry_quarantined: bool = False
    """Retry quarantined shards."""
    max_bad_images: Allowance = 0.01
    """Images of the archive without a score, a count or a share, above which a finished run exits with 5."""
    max_bad_shards: Allowance = 0
    """Quarantined shards, a count or a share of all shards, above which a finished run exits with 5."""
    price_per_hour: PositiveFloat | None = None
    """Price of one worker per hour, in any currency, from which --dry-run estimates the cost."""
    ray: RaySettings = RaySettings()
    """Ray cluster that does the work."""
    runtime_env: dict[str, Any] = {}
    """Runtime environment passed to Ray; its env_vars are never written to run.json or a log."""

    @property
    def device_needed(self) -> DeviceName:
        """Device that workers compute on; scoring signals again takes no GPU."""
        return "cpu" if isinstance(self.input, ResultsInput) else self.device

    @model_validator(mode="after")
    def _trusted(self) -> "ScoreJob":
        if self.embedder is not None and self.embedder.own_code and self.embedder.arch not in self.trust:
            name = self.embedder.arch
            raise ValueError(f"embedder.arch: {name} is code of its own; to import it, say `trust: [{name}]`")
        return self

    @model_validator(mode="after")
    def _nothing_of_images(self) -> "ScoreJob":
        if isinstance(self.input, ResultsInput):
            for name in _OF_IMAGES:
                if getattr(self, name) not in (type(self).model_fields[name].default, "none"):
                    raise ValueError(f"{name}: not with input.kind results, which reads no image and keeps all columns")
        return self
