"""Settings of the stores that s3:// and gs:// URIs lie in."""

from typing import Literal

from pydantic import PositiveFloat, field_validator

from gradosr.config.settings import Settings

PREFIXES = ("s3://", "gs://")
"""Beginnings of the URIs that settings apply to."""


class S3Settings(Settings):
    """Access to one S3-compatible store. Credentials come from the standard AWS chain only."""

    anonymous: bool = False
    """Whether the store is asked without keys, as public buckets can be; keys that the AWS chain has are not sent."""

    endpoint_url: str | None = None
    """URL of the S3 server; none for AWS itself, or Google Cloud Storage itself."""
    region: str | None = None
    """Region name; none takes the AWS chain's, else us-east-1, and for gs:// `auto`."""
    addressing_style: Literal["auto", "path", "virtual"] = "auto"
    """Place of the bucket, in the path or in the host name; many S3-compatible servers need `path`."""
    checksums: Literal["when_supported", "when_required"] = "when_supported"
    """Request and response checksums; some S3-compatible servers need `when_required`, which gs:// always takes."""
    read_timeout: PositiveFloat = 30.0
    """Seconds without a byte after which a request is tried again. An answer that trickles is given five more for each
    64 KiB."""


class StoreFields(Settings):
    """Settings for s3:// and gs:// URIs."""

    store: S3Settings = S3Settings()
    """Settings for every s3:// and gs:// URI."""
    stores: dict[str, S3Settings] = {}
    """Settings by URI prefix, the longest match first; `store` serves the rest."""

    @field_validator("stores")
    @classmethod
    def _prefixes(cls, stores: dict[str, S3Settings]) -> dict[str, S3Settings]:
        if wrong := [prefix for prefix in stores if not prefix.startswith(PREFIXES)]:
            raise ValueError(f"a store's prefix begins with {' or '.join(PREFIXES)}: {', '.join(wrong)}")
        return stores
