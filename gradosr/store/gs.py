"""Google Cloud Storage, under gs://BUCKET/KEY, through its S3 interoperability.

Credentials are HMAC keys, which the standard AWS chain finds as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; service
accounts and workload identity do not serve. Two limits of its XML API:

- It makes writes conditional by generation number (x-goog-if-generation-match), not by ETag. Where it refuses
  If-None-Match and If-Match, `write(if_absent=True)` writes plainly and `exchange` raises NoConditionalWrites; where it
  ignores them, an exchange that must be refused shows it. Either way a run warns and goes on without a lease.
- It does not know the checksums of AWS: they are sent when required only, whatever the settings say.

Tested against an S3 server of the same signatures, not against Google's.
"""

from gradosr.config import S3Settings
from gradosr.store.backends import Backend
from gradosr.store.s3 import S3Backend

ENDPOINT_URL = "https://storage.googleapis.com"
REGION = "auto"  # Google signs with it; buckets are found wherever they are


def connect(settings: S3Settings) -> Backend:
    """Make the S3 backend with Google's endpoint and region where the settings name none."""
    ours = {
        "endpoint_url": settings.endpoint_url or ENDPOINT_URL,
        "region": settings.region or REGION,
        "checksums": "when_required",
    }
    return S3Backend(settings.model_copy(update=ours))
