"""Versions of what scores may depend on."""

import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version


def software() -> dict[str, str]:
    """Versions that scores may depend on."""
    found = {"python": platform.python_version()}
    for name in ("gradosr", "torch", "torchvision", "pyarrow", "pillow", "ray"):
        with suppress(PackageNotFoundError):  # a checkout on the path; a machine that needs no Ray
            found[name] = version(name)
    return found
