"""Demands that an AVIF makes of its decoder, read from its boxes (ISO 14496-12, 23008-12; AV1 5.5, 5.9).

libavif trusts the size in the container. The AV1 stream within has a size of its own, up to 16,384 x 16,384, and frames
that are never shown: a hundred bytes can ask for gigabytes.
"""

import struct
from collections.abc import Iterator

_FOUND = 65_536  # boxes, items, extents and units that are looked at; a grid of 256 x 256 cells has as many


class NotAvif(Exception):
    """A structure that is not as it should be."""


def brands(data: bytes) -> set[bytes]:
    """Return the brands of a file's type box; empty for what does not begin with one."""
    if data[4:8] != b"ftyp":
        return set()
    names = data[8 : min(int.from_bytes(data[:4], "big"), 256)]
    return {names[at : at + 4] for at in range(0, len(names), 4) if at != 4}


def is_cut(data: bytes) -> bool:
    """Tell whether a top-level box reaches beyond the end."""
    at = 0
    for _ in range(_FOUND):
        if at + 8 > len(data):
            return at != len(data)
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size < 8:  # 0: up to the end, wherever that is
            return False
        at += size
    return False


def frame_pixels(data: bytes) -> int:
    """Return the pixels of all frames of all AV1 items, each of the largest size that its stream allows.

    Raises NotAvif where that cannot be told.
    """
    try:
        meta = next((body for kind, body in _boxes(data) if kind == b"meta"), None)
        if meta is None:
            raise NotAvif("no meta box")
        boxes = dict(_boxes(meta[4:]))
        coded = _coded_items(boxes.get(b"iinf", b""))
        return sum(
            _stream_pixels(stream)
            for item, stream in _items(boxes.get(b"iloc", b""), data, boxes.get(b"idat", b""))
            if item in coded
        )
    except (struct.error, IndexError) as error:
        raise NotAvif("a box that breaks off") from error


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    for _ in range(_FOUND):
        if at + 8 > len(data):
            return
        size, kind = struct.unpack_from(">I4s", data, at)
        start = at + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, start)
            start += 8
        end = len(data) if size == 0 else at + size
        if end < start:
            raise NotAvif("a box smaller than its header")
        yield kind, data[start:end]
        at = end
    raise NotAvif("too many boxes")


def _coded_items(info: bytes) -> set[int]:
    """Return the numbers of the items of type av01."""
    found = set[int]()
    for kind, body in _boxes(info[6 if info[:1] == b"\0" else 8 :]):
        if kind != b"infe":
            continue
        item, _, coding = struct.unpack_from(">IH4s" if body[0] >= 3 else ">HH4s", body, 4)
        if coding == b"av01":
            found.add(item)
    return found


def _items(location: bytes, data: bytes, own: bytes) -> Iterator[tuple[int, bytes]]:
    """Return number and bytes of each item, which lie in the file or in the box of the items' `own` data."""
    fields = _Bits(location)
    version = fields.take(8)
    fields.take(24)
    offset_size, length_size, base_size, index_size = (8 * fields.take(4) for _ in range(4))
    wide = 32 if version == 2 else 16
    left = _FOUND
    for _ in range(fields.take(wide)):
        item = fields.take(wide)
        method = fields.take(16) & 15 if version else 0
        fields.take(16)
        base, stream = fields.take(base_size), b""
        for _ in range(fields.take(16)):
            if (left := left - 1) < 0:
                raise NotAvif("too many extents")
            fields.take(index_size if version else 0)
            start = base + fields.take(offset_size)
            length = fields.take(length_size)
            part = (own if method == 1 else data)[start : start + length if length else None]
            if len(stream) + len(part) > len(data):  # extents may lie upon each other
                raise NotAvif("an item larger than its file")
            stream += part
        yield item, stream


def _stream_pixels(stream: bytes) -> int:
    """Return the pixels of the frames of an AV1 stream; without a sequence header, it has none."""
    at, frames, largest = 0, 0, 0
    for _ in range(_FOUND):
        if at >= len(stream):
            return frames * largest
        header = stream[at]
        at += 2 if header & 4 else 1
        size, shift = (0, 0) if header & 2 else (len(stream) - at, 0)
        while header & 2:
            byte = stream[at]
            size |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if byte < 128:
                break
        kind = header >> 3 & 15
        frames += kind in (3, 6)  # a frame header, a frame
        if kind == 1:
            largest = max(largest, _sequence_pixels(_Bits(stream[at : at + 256])))
        at += size
    raise NotAvif("too many units")


def _sequence_pixels(bits: "_Bits") -> int:
    """Return width times height of the largest frame that a sequence header allows (5.5.1)."""
    bits.take(4)
    if bits.take(1):  # reduced_still_picture_header
        bits.take(5)
    else:
        delay = _timing(bits)
        shown = bits.take(1)
        for _ in range(bits.take(5) + 1):
            bits.take(12)
            if bits.take(5) > 7:
                bits.take(1)
            if delay and bits.take(1):
                bits.take(2 * delay + 1)
            if shown and bits.take(1):
                bits.take(4)
    width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
    return (bits.take(width_bits) + 1) * (bits.take(height_bits) + 1)


def _timing(bits: "_Bits") -> int:
    """Skip timing_info and decoder_model_info; return the length of the delays of an operating point, 0 if none."""
    if not bits.take(1):
        return 0
    bits.take(64)
    if bits.take(1):  # a number in Elias' gamma code
        zeros = 0
        while not bits.take(1):
            zeros += 1
        bits.take(min(zeros, 32))
    if not bits.take(1):
        return 0
    delay = bits.take(5) + 1
    bits.take(42)
    return delay


class _Bits:
    """Bits of a header, the highest of each byte first."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, count: int) -> int:
        """Return the next `count` bits as a number. Raises IndexError beyond the end."""
        end = self._at + count
        if end > 8 * len(self._data):
            raise IndexError
        whole = int.from_bytes(self._data[self._at // 8 : -(-end // 8)], "big")
        self._at = end
        return whole >> -end % 8 & (1 << count) - 1
