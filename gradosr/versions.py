"""Versions of the software that scores may depend on."""

import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version


def software() -> dict[str, str]:
    """Return the version of each installed package that scores may depend on, and of Python."""
    found = {"python": platform.python_version()}
    for name in ("gradosr", "torch", "torchvision", "pyarrow", "pillow", "ray"):
        with suppress(PackageNotFoundError):  # a checkout that is not installed, or a machine without Ray
            found[name] = version(name)
    return found
