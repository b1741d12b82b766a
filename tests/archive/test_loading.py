"""How much of an archive is in memory at once."""

import threading
import time
from collections.abc import Iterator

import pytest
import torch
from hostile import png

from gradosr.archive import loading
from gradosr.archive.image import EncodedImage
from gradosr.archive.loading import PreparedImage, ahead, prepared_batches
from gradosr.config import MAX_PIXELS, TransformSettings

TRANSFORM = TransformSettings(resize=(4, 4))


def batches(images: Iterator[EncodedImage], size: int = 4) -> Iterator[list[PreparedImage]]:
    return prepared_batches(images, TRANSFORM, MAX_PIXELS, size, threads=2)


def test_batches_are_whole_and_in_order() -> None:
    found = list(batches(EncodedImage(f"{number}", png(4, 4)) for number in range(10)))
    assert [len(batch) for batch in found] == [4, 4, 2]
    assert [image.encoded.key for batch in found for image in batch] == [f"{number}" for number in range(10)]
    assert all(image.pixels is not None and not image.encoded.data for batch in found for image in batch)


def test_an_error_of_the_reader_ends_the_batches() -> None:
    def images() -> Iterator[EncodedImage]:
        yield from (EncodedImage(f"{number}", png(4, 4)) for number in range(9))
        raise OSError("lost")

    found = batches(images())
    assert len(next(found)) == 4
    with pytest.raises(OSError, match="lost"):
        list(found)


def test_a_thread_that_decodes_computes_on_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    decode, seen, own = loading.decode, set[int](), torch.get_num_threads()

    def seen_by(encoded: bytes, max_pixels: int) -> object:
        seen.add(torch.get_num_threads())
        return decode(encoded, max_pixels)

    monkeypatch.setattr(loading, "decode", seen_by)
    torch.set_num_threads(own + 3)
    try:
        list(batches(EncodedImage(f"{number}", png(4, 4)) for number in range(10)))
        assert seen == {1}
        assert torch.get_num_threads() == own + 3, "who scores keeps its own"
    finally:
        torch.set_num_threads(own)


def test_images_wait_for_the_decoder_only_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    data, read, decoded, go = png(4, 4), [], [], threading.Event()
    monkeypatch.setattr(loading, "MAX_HELD", 3 * len(data))
    decode = loading.decode

    def slow(encoded: bytes, max_pixels: int) -> object:
        assert go.wait(20)
        decoded.append(len(read))
        return decode(encoded, max_pixels)

    def images() -> Iterator[EncodedImage]:
        for number in range(20):
            read.append(number)
            if number == 3:  # the fourth is in hand, three wait: now may the decoder begin
                go.set()
            yield EncodedImage(f"{number}", data)

    monkeypatch.setattr(loading, "decode", slow)
    assert sum(len(batch) for batch in batches(images(), size=16)) == 20
    assert max(seen - done for done, seen in enumerate(decoded)) <= 4


def test_large_images_are_decoded_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    both, decode = threading.Barrier(2, timeout=20), loading.decode

    def together(encoded: bytes, max_pixels: int) -> object:
        both.wait()
        return decode(encoded, max_pixels)

    monkeypatch.setattr(loading, "decode", together)
    large = png(4, 4).ljust(loading.TASK_BYTES, b"\0")
    (found,) = batches((EncodedImage(f"{number}", large) for number in range(2)), size=16)
    assert [image.pixels is not None for image in found] == [True, True]


def test_what_waits_is_bounded_by_its_weight() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            made.append(number)
            yield number

    taken = ahead(items(), lambda _: 3, budget=7)
    assert settled(made) == [0, 1, 2]  # begun without being asked, and at rest with 9 of 7
    assert next(taken) == 0
    assert settled(made) == [0, 1, 2, 3]
    assert list(taken) == list(range(1, 20))


def test_dropping_what_was_never_begun_ends_its_thread() -> None:
    before = threading.active_count()
    taken = ahead(iter(range(20)), lambda _: 1, budget=1)
    assert threading.active_count() == before + 1
    del taken
    assert threading.active_count() == before


def settled(made: list[int]) -> list[int]:
    """Once nothing has been added for a while."""
    found: list[int] | None = None
    while found != made:
        found = list(made)
        time.sleep(0.2)
    return found
