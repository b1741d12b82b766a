"""Images of an input, decoded once for several readings."""

from pathlib import Path

import pytest
import torch
from tiny import TRANSFORM, picture, plain

from gradosr.archive.decoded import DecodedImages
from gradosr.archive.loading import PreparedImage
from gradosr.config import MAX_PIXELS, ImagesInput
from gradosr.errors import StoreError
from gradosr.store import Store

SIZE = 3 * 16 * 16


@pytest.fixture
def source(tmp_path: Path) -> ImagesInput:
    for number in range(300):
        (tmp_path / f"{number:03}.png").write_bytes(picture(number))
    (tmp_path / "007.png").write_bytes(b"no image")
    return ImagesInput(uri=f"{tmp_path}/")


def read(decoded: DecodedImages, source: ImagesInput, *ends: str) -> list[PreparedImage]:
    return list(
        decoded.read(source, TRANSFORM, MAX_PIXELS, lambda image: image.key.removesuffix(".png").endswith(ends or ""))
    )


def same(one: list[PreparedImage], other: list[PreparedImage]) -> bool:
    pixels = [[image.pixels for image in images if image.pixels is not None] for images in (one, other)]
    keys = [[image.encoded.key for image in images] for images in (one, other)]
    return keys[0] == keys[1] and torch.equal(*map(torch.stack, pixels))


@pytest.mark.slow
@pytest.mark.parametrize("most", [0, 50 * SIZE, 10**9])
def test_each_reading_gives_what_it_takes_in_order_whatever_is_kept(source: ImagesInput, most: int) -> None:
    decoded = DecodedImages(Store(), most)
    for ends in ((), ("3", "8"), ("1", "2", "3"), ()):
        found = read(decoded, source, *ends)
        assert same(found, read(DecodedImages(Store()), source, *ends))
        assert len(found) == {0: 300, 2: 60, 3: 90}[len(ends)]
        assert [image.fault.status for image in found if image.fault] == ["not_an_image"] * (not ends)


def test_what_is_kept_is_not_decoded_again(source: ImagesInput, tmp_path: Path) -> None:
    decoded = DecodedImages(Store(), 50 * SIZE)
    before = read(decoded, source)
    for path in tmp_path.glob("*.png"):
        path.write_bytes(plain())
    after = read(decoded, source)
    white = [bool((image.pixels == 255).all()) for image in after]
    assert white == [number == 7 or number > 50 for number in range(300)]
    assert same(after[:7] + after[8:51], before[:7] + before[8:51])
    other = TRANSFORM.model_copy(update={"resize": (8, 8)})
    assert all((image.pixels == 255).all() for image in decoded.read(source, other, MAX_PIXELS, lambda _: True))


def test_errors_of_the_reader_are_passed_on(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such file"):
        read(DecodedImages(Store()), ImagesInput(uri=f"{tmp_path}/none/"))
