"""URIs in a config."""

import os
import re
from typing import Annotated

from pydantic import AfterValidator

_ONE_SLASH = re.compile(r"(s3|gs|memory):/(?!/)")


def fault_of(uri: str) -> str | None:
    """Return why nobody can mean this as a path or URI; None if somebody can.

    An empty text comes from a variable of the shell that is not set; as a path it would be the working directory.
    """
    if not uri:
        return "empty; name a path or a URI"
    return f"{uri}: did you mean {uri.replace(':/', '://', 1)}?" if _ONE_SLASH.match(uri) else None


def absolute(uri: str) -> str:
    """Make a local path absolute: a worker's working directory is not the user's. Raises ValueError by `fault_of`."""
    if fault := fault_of(uri):
        raise ValueError(fault)
    return uri if "://" in uri else os.path.abspath(uri) + ("/" if uri.endswith("/") else "")  # noqa: PTH100 - links stay


Uri = Annotated[str, AfterValidator(absolute)]
"""Local path, or URI of a scheme in gradosr.store.BACKENDS: file://, s3://, gs://, memory://."""
