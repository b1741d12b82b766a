"""URIs in a config."""

import os
from typing import Annotated

from pydantic import AfterValidator


def absolute(uri: str) -> str:
    """Make a local path absolute: a worker's working directory is not the user's."""
    return uri if "://" in uri or not uri else os.path.abspath(uri) + ("/" if uri.endswith("/") else "")  # noqa: PTH100 - links stay


Uri = Annotated[str, AfterValidator(absolute)]
"""Local path, or URI of a scheme in gradosr.store.BACKENDS: file://, s3://, gs://, memory://."""
