"""A series of checks that are all run, so that every fault is told at once."""

from collections.abc import Callable
from typing import TypeVar

from gradosr.errors import ConfigError, GradosrError, InputError
from gradosr.store import Store

T = TypeVar("T")


class Attempts:
    """A series of checks that are all run, so that every fault is reported at once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.faults: list[GradosrError] = []

    def __call__(self, uri: str, step: Callable[[], T]) -> T | None:
        """Run a check on `uri`, and return its result or None if it failed.

        A server that does not answer is given up quickly, and reported once for all checks.
        """
        try:
            self._store.reach(uri)
            return step()
        except (ConfigError, InputError) as error:
            self.faults.append(error)
            return None

    def fault(self) -> GradosrError:
        """Return all faults as one error of the first one's type."""
        return type(self.faults[0])("\n".join(dict.fromkeys(str(fault) for fault in self.faults)))
