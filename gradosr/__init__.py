"""gradosr finds what an image classifier has never seen, in archives of any size.

Open-set recognition with gradient-based representations (Lee & AlRegib, ICIP 2021, arXiv 2206.08229).

    bundle = gradosr.load("s3://models/animals-v3/")
    scored = bundle.score(["a.jpg", "b.png"])
    scored.to_pandas()
    print(bundle.explain("a.jpg"))

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
    from gradosr.python.bundle import Bundle, load
    from gradosr.python.explanations import Explanations
    from gradosr.python.scored import Scored
    from gradosr.scoring.arrays import Detector

    __version__: str

__all__ = ["Bundle", "Detector", "Explanations", "Scored", "__version__", "fit", "load"]
_PLACES = {
    "Bundle": "gradosr.python.bundle",
    "Detector": "gradosr.scoring.arrays",
    "Explanations": "gradosr.python.explanations",
    "Scored": "gradosr.python.scored",
    "load": "gradosr.python.bundle",
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
