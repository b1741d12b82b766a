"""Fitting of a detector to a classifier, from known images to a bundle; and a check of a job before it runs.

The package can be called: `gradosr.fit(...)` is gradosr.fit.python.fit.
"""

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *args: Any, **settings: Any) -> Any:
        """Make a bundle, as gradosr.fit.python.fit does."""
        from gradosr.fit.python import fit

        return fit(*args, **settings)


sys.modules[__name__].__class__ = _Callable  # a package and a function of one name
