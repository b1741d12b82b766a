"""Settings of nightly screening."""

from typing import Annotated
from zoneinfo import ZoneInfo

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from gradosr.config.score import Allowance, ScoreJob
from gradosr.config.settings import Settings


class Gates(Settings):
    """Limits on a night's results; a gate that is left out is off."""

    unknown_rate: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of new images over the threshold. Trips if its whole 95 % interval lies above this share."""
    rate_increase: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Increase of the share of new images over the threshold, against that of the `baseline_nights`. Trips if its whole
    95 % interval lies above this value."""
    new_candidate_class: PositiveInt | None = None
    """New images in one cluster of look-alikes that is rare in earlier nights. Trips at this many or more."""
    bad_images: Allowance | None = None
    """New images without a score, a count or a share. Trips if there are more."""
    shards_missing: Allowance | None = None
    """Shards of the night before that are gone, a count or a share. Trips if there are more."""


class Webhook(Settings):
    """Receiver of an HTTP POST with the night's JSON document when a gate trips."""

    url: Annotated[str, Field(pattern=r"^https?://")]
    """Address, http:// or https://."""
    key_env: str | None = None
    """Environment variable with a key that signs the body: X-Gradosr-Signature: sha256=HMAC."""
    timeout: PositiveFloat = 10.0
    """Seconds allowed for each attempt."""
    attempts: PositiveInt = 5
    """Attempts before it is given up for the night; the next night tries again."""


class ScreenJob(ScoreJob):
    """Score images that are new or changed since the last night, and report whether someone should look at them."""

    gates: Gates = Gates()
    """Limits on the night's results; at least one is required."""
    dismissed: tuple[str, ...] = ()
    """Names, given to images of earlier nights by `gradosr label`, of what nobody needs to hear of again. A cluster
    with two or more images so labelled, and none labelled otherwise (`unknown` is no other name), does not trip
    gates.new_candidate_class."""
    baseline_nights: PositiveInt = 7
    """Number of earlier nights that this one is compared with."""
    fdr: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Level of the audit's flag list: the share of false alarms among the flagged images."""
    timezone: str = "UTC"
    """IANA name of the time zone whose dates name the nights."""
    webhook: Webhook | None = None
    """Receiver of a POST when a gate trips."""
    command: tuple[str, ...] = ()
    """Command run when a gate trips, with the night's JSON document on its standard input; killed after ten minutes."""

    @model_validator(mode="after")
    def _possible(self) -> "ScreenJob":
        if self.gates == Gates():
            raise ValueError(f"gates: name at least one, or no night can trip: {', '.join(sorted(Gates.model_fields))}")
        if self.gates.new_candidate_class is not None and self.features == "none" and self.embedder is None:
            raise ValueError("gates.new_candidate_class needs features: unknown, or all")
        try:
            ZoneInfo(self.timezone)
        except (KeyError, ValueError, OSError) as error:
            raise ValueError(
                f"timezone: no time zone {self.timezone}; expected a name such as Europe/Berlin"
            ) from error
        return self
