"""How much of an archive is in memory at once."""

import threading
import time
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from hostile import png

from gradosr.archive import loading
from gradosr.archive.image import EncodedImage
from gradosr.archive.loading import Prefetcher, PreparedImage, prepared_batches
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
        assert go.wait(60)
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
    both, decode = threading.Barrier(2, timeout=60), loading.decode

    def together(encoded: bytes, max_pixels: int) -> object:
        both.wait()
        return decode(encoded, max_pixels)

    monkeypatch.setattr(loading, "decode", together)
    large = png(4, 4).ljust(loading.TASK_BYTES, b"\0")
    (found,) = batches((EncodedImage(f"{number}", large) for number in range(2)), size=16)
    assert [image.pixels is not None for image in found] == [True, True]


def test_what_waits_is_bounded_by_its_weight() -> None:
    made = Made(20)
    taken = Prefetcher(iter(made), lambda _: 3, budget=7)
    assert made.rests_at(3)  # begun without being asked, and at rest with 9 of 7
    assert next(taken) == 0
    assert made.rests_at(4)
    assert list(taken) == list(range(1, 20))
    assert next(taken, None) is None


def test_an_item_may_weigh_more_than_all_that_may_wait() -> None:
    made = Made(3)
    taken = Prefetcher(iter(made), lambda _: 100, budget=1)
    assert made.rests_at(1)
    assert list(taken) == [0, 1, 2]


def test_an_error_comes_in_its_place_and_once() -> None:
    def items() -> Iterator[int]:
        yield from range(2)
        raise OSError("lost")

    taken = Prefetcher(items(), lambda _: 1, budget=10)
    assert [next(taken), next(taken)] == [0, 1]
    with pytest.raises(OSError, match="lost"):
        next(taken)
    assert list(taken) == []


def test_an_error_of_the_weight_is_handed_over() -> None:
    with pytest.raises(ZeroDivisionError):
        next(Prefetcher(iter([1]), lambda item: item // 0, budget=10))


@pytest.mark.parametrize("taken", [0, 1, 3])
@pytest.mark.parametrize("end", [Prefetcher.close, lambda _: None], ids=["closed", "dropped"])
def test_one_that_ends_half_way_leaves_nothing(taken: int, end: Callable[[Prefetcher[int]], None]) -> None:
    before, made = threading.active_count(), Made(20)
    prefetcher = Prefetcher(iter(made), lambda _: 1, budget=1)
    assert threading.active_count() == before + 1
    for _ in range(taken):
        next(prefetcher)
    end(prefetcher)
    del prefetcher
    assert threading.active_count() == before
    assert made.closed


def test_one_in_the_middle_of_a_read_that_hangs_is_left_behind_and_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loading, "CLOSE_SECONDS", 0.05)
    before, begun, go = threading.active_count(), threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        begun.set()
        go.wait(60)  # as six attempts at a store that does not answer
        yield 0

    prefetcher = Prefetcher(items(), lambda _: 1, budget=1)
    assert begun.wait(60)
    prefetcher.close()
    assert not go.is_set()
    assert "did not end within 0.05 s" in caplog.text
    go.set()
    deadline = time.monotonic() + 60
    while threading.active_count() > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_waits_is_let_go_when_it_is_closed() -> None:
    class Item:
        pass

    kept: list[weakref.ref[Item]] = []

    def items() -> Iterator[Item]:
        while True:
            item = Item()
            kept.append(weakref.ref(item))
            yield item

    prefetcher = Prefetcher(items(), lambda _: 1, budget=3)
    next(prefetcher)
    prefetcher.close()
    assert [item for item in kept if item() is not None] == []
    assert next(prefetcher, None) is None
    prefetcher.close()


class Made:
    """Numbers, and how many of them were asked for."""

    def __init__(self, end: int) -> None:
        self.count, self.closed, self._end = 0, False, end
        self._changed = threading.Condition()

    def __iter__(self) -> Iterator[int]:
        try:
            for number in range(self._end):
                with self._changed:
                    self.count += 1
                    self._changed.notify_all()
                yield number
        finally:
            self.closed = True

    def rests_at(self, count: int) -> bool:
        """Wait, however long, until so many were made; a moment shows whether more are, and may be too short to."""
        with self._changed:
            self._changed.wait_for(lambda: self.count >= count, timeout=60)
            self._changed.wait_for(lambda: self.count > count, timeout=0.2)
            return self.count == count
