"""The temporary disk, where what is too large for memory grows."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from gradosr.errors import StoreError, first_line


@contextmanager
def spooled(what: str = "a part too large for memory") -> Iterator[None]:
    """Raise StoreError that names the temporary disk if it is full; it is not the disk of the output."""
    try:
        yield
    except OSError as error:
        advice = f"{what} grows there; make room or set TMPDIR"
        raise StoreError(f"{tempfile.gettempdir()}: {first_line(error)}: {advice}") from error
