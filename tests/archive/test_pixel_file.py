"""Images in a temporary file: the same as in memory, and gone afterwards."""

import gc
import resource
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from gradosr.archive.pixel_file import PixelFile
from gradosr.errors import MachineFault

IMAGES_NCHW = torch.randint(0, 256, (20, 3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def open_files(folder: Path) -> int:
    """How many files of the folder this process has open; those of tests before are closed when it pleases Python."""
    found = 0
    for number in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found += str(number.readlink()).startswith(f"{folder}/")
    return found


def written() -> PixelFile:
    file = PixelFile()
    for pixels in IMAGES_NCHW:
        file.append(pixels)
    return file


@pytest.mark.parametrize("rows", [[], [19], [3, 0, 3, 11], list(range(20))])
def test_rows_are_those_of_a_tensor(rows: list[int]) -> None:
    file, rows_N = written(), torch.tensor(rows, dtype=torch.long)
    assert torch.equal(file[rows_N], IMAGES_NCHW[rows_N])
    assert (len(file), file.nbytes) == (len(IMAGES_NCHW), IMAGES_NCHW.nbytes)


def test_pixels_that_do_not_lie_together_are_written_in_their_order() -> None:
    file = PixelFile()
    file.append(IMAGES_NCHW[0].flip(2).transpose(1, 2))
    assert torch.equal(file[torch.tensor([0])][0], IMAGES_NCHW[0].flip(2).transpose(1, 2))


def test_nothing_is_left_in_the_folder(folder: Path) -> None:
    file = written()
    assert not list(folder.iterdir())
    assert open_files(folder) == 1
    del file
    gc.collect()
    assert open_files(folder) == 0


def test_a_disk_without_room_is_told_with_its_place(folder: Path) -> None:
    """The limit lies within an image, so that a write ends early before the next one fails."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (150, limits[1]))
        with pytest.raises(
            MachineFault, match=rf"\A{folder}, after 0.0 GB of pixels: .*make room or set TMPDIR"
        ) as told:
            written()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(told.value)


def test_a_folder_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", f"{tmp_path}/none")
    with pytest.raises(MachineFault, match=r"No such file or directory.*make room or set TMPDIR"):
        PixelFile()
