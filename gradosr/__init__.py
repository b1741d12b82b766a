"""gradosr finds what an image classifier has never seen, in archives of any size.

Open-set recognition with gradient-based representations (Lee & AlRegib, ICIP 2021, arXiv 2206.08229).

    bundle = gradosr.load("s3://models/animals-v3/")
    scored = bundle.score(["a.jpg", "b.png"])
    scored.to_pandas()

Nothing is imported before it is used.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Read when torch is loaded. By default, OpenMP's threads spin while they wait for each other: on a machine with a busy
# neighbour, or in a container with a share of the cores, two threads then take many times as long as one.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from gradosr.fit.python import fit
    from gradosr.scoring.arrays import Detector
    from gradosr.scoring.images import Bundle, Scored, load

    __version__: str

__all__ = ["Bundle", "Detector", "Scored", "__version__", "fit", "load"]
_PLACES = {
    "Bundle": "gradosr.scoring.images",
    "Detector": "gradosr.scoring.arrays",
    "Scored": "gradosr.scoring.images",
    "load": "gradosr.scoring.images",
}
"""Modules of the public names. `fit` is the package gradosr.fit, which can be called."""


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name == "__version__":
        from importlib.metadata import version

        return version("gradosr")
    if name == "fit":
        return import_module("gradosr.fit")
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
