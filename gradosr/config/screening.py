"""A night's screening."""

from typing import Annotated, Literal
from zoneinfo import ZoneInfo

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from gradosr.config.score import Allowance, ScoreJob
from gradosr.config.settings import Settings


class Gates(Settings):
    """What a night's screening may not show; each gate is off where it is not named."""

    unknown_rate: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of new images called unknown. Trips when all of its 95 % interval lies above."""
    rate_increase: Annotated[float, Field(ge=0, lt=1)] | None = None
    """The same share, less that of the `baseline_nights`. Trips when all of the 95 % interval lies above."""
    new_candidate_class: PositiveInt | None = None
    """New images of one group of look-alikes that earlier nights hardly had. Trips from this many on."""
    bad_images: Allowance | None = None
    """New images without a score, a count or a share. Trips beyond it."""
    shards_missing: Allowance | None = None
    """Shards of the night before that are gone, a count or a share. Trips beyond it."""


class Webhook(Settings):
    """Where a tripped gate is told: an HTTP POST of the night's JSON document."""

    url: Annotated[str, Field(pattern=r"^https?://")]
    key_env: str | None = None
    """Environment variable of a key; the body is signed with it: X-Gradosr-Signature: sha256=HMAC."""
    timeout: PositiveFloat = 10.0
    """Seconds, of each try."""
    attempts: PositiveInt = 5


class ScreenJob(ScoreJob):
    """Score what is new or changed since the last night, and tell whether somebody should look at it."""

    features: Literal["none", "unknown", "all"] = "unknown"
    """Rows that store the penultimate features: candidate classes are found in them."""
    gates: Gates = Gates()
    """One at least."""
    baseline_nights: PositiveInt = 7
    """Nights before this one that it is compared with."""
    fdr: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Of the audit's flag list: the share of false alarms among the flagged images."""
    timezone: str = "UTC"
    """IANA name; nights are named by its dates."""
    webhook: Webhook | None = None
    command: tuple[str, ...] = ()
    """Run when a gate tripped, with the night's JSON document on its standard input."""

    @model_validator(mode="after")
    def _possible(self) -> "ScreenJob":
        if self.gates == Gates():
            raise ValueError(f"gates: name one at least, or no night can trip: {', '.join(sorted(Gates.model_fields))}")
        if self.gates.new_candidate_class is not None and self.features == "none":
            raise ValueError("gates.new_candidate_class needs features: unknown, or all")
        try:
            ZoneInfo(self.timezone)
        except (KeyError, ValueError, OSError) as error:
            raise ValueError(
                f"timezone: no time zone {self.timezone}; expected a name such as Europe/Berlin"
            ) from error
        return self
