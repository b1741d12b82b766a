"""Images at the classifier's input size in a temporary file, so that memory does not grow with their number."""

import tempfile
import weakref
from typing import Protocol

import torch
from torch import Tensor

from gradosr.errors import MachineFault, first_line

ADVICE = "decoded images lie in a temporary file; make room or set TMPDIR to a folder that has it"


class Images(Protocol):
    """Images of one size as uint8 pixels, in memory (a tensor [N, 3, H, W] is such) or elsewhere."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        """Return the images in these rows, [B, 3, H, W], on the CPU unless they are a tensor elsewhere."""
        ...


class PixelFile:
    """Images in a file without a name, which is gone with this object or its process. Used on one thread at a time.

    It is read, not mapped: mapped pages count as memory of the process.
    """

    def __init__(self) -> None:
        """Make an empty file in the folder that TMPDIR names, or in the system's. Raises MachineFault if it cannot."""
        try:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed with this object
        except OSError as error:
            raise MachineFault(f"{first_line(error)}; {ADVICE}") from error
        self._finish = weakref.finalize(self, self._file.close)
        self._shape: tuple[int, ...] = ()
        self._count = 0
        self.nbytes = 0

    def append(self, pixels: Tensor) -> None:
        """Add an image, uint8 [3, H, W], of the size of the others. Raises MachineFault if the disk has no room."""
        self._shape = tuple(pixels.shape)
        rest = pixels.contiguous().numpy().data.cast("B")
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            where = f"{tempfile.gettempdir()}, after {self.nbytes / 1e9:,.1f} GB of pixels"
            raise MachineFault(f"{where}: {first_line(error)}; {ADVICE}") from error
        self._count += 1
        self.nbytes += pixels.nbytes

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        images = torch.empty((len(rows), *self._shape), dtype=torch.uint8)
        for row, pixels in zip(rows.tolist(), images.numpy(), strict=True):
            self._file.seek(row * pixels.nbytes)
            self._file.readinto(pixels)
        return images
