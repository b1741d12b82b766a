"""How stores are reached."""

from typing import Literal

from pydantic import PositiveFloat, field_validator

from gradosr.config.settings import Settings


class S3Settings(Settings):
    """How to reach one S3-compatible store. Credentials come from the standard AWS chain only."""

    endpoint_url: str | None = None
    """URL of the S3 server; none for AWS itself."""
    region: str | None = None
    """Region name; none takes the AWS chain's, else us-east-1."""
    addressing_style: Literal["auto", "path", "virtual"] = "auto"
    """Bucket in the path or in the host name; many S3-compatible servers need `path`."""
    checksums: Literal["when_supported", "when_required"] = "when_supported"
    """Request and response checksums; some S3-compatible servers need `when_required`."""
    read_timeout: PositiveFloat = 30.0
    """Seconds without a byte after which a read is tried again."""


class StoreFields(Settings):
    """How s3:// URIs are reached."""

    store: S3Settings = S3Settings()
    """For every s3:// URI."""
    stores: dict[str, S3Settings] = {}
    """By URI prefix, the longest match first; `store` serves the rest."""

    @field_validator("stores")
    @classmethod
    def _prefixes(cls, stores: dict[str, S3Settings]) -> dict[str, S3Settings]:
        if wrong := [prefix for prefix in stores if not prefix.startswith("s3://")]:
            raise ValueError(f"a store's prefix begins with s3://: {', '.join(wrong)}")
        return stores
