"""Images, tars and Parquet files as archives really hold them, made by code: valid, odd, cut and hostile."""

import io
import struct
import tarfile
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(width: int = 40, height: int = 30, colour: tuple[int, int, int] = RED, **options: Any) -> bytes:
    return encoded(Image.new("RGB", (width, height), colour), "JPEG", quality=95, **options)


def png(width: int = 40, height: int = 30, colour: tuple[int, int, int] = RED, **options: Any) -> bytes:
    return encoded(Image.new("RGB", (width, height), colour), "PNG", **options)


def noise(width: int = 64, height: int = 48, seed: int = 0) -> Image.Image:
    """An image that does not compress: cuts fall into its pixels, not into its header."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def cut(data: bytes, share: float = 0.6) -> bytes:
    return data[: int(len(data) * share)]


def grey_jpeg() -> bytes:
    return encoded(Image.new("L", (20, 10), 128), "JPEG", quality=95)


def cmyk_jpeg() -> bytes:
    """Pure cyan: (0, 255, 255) as RGB."""
    return encoded(Image.new("CMYK", (20, 10), (255, 0, 0, 0)), "JPEG", quality=95)


def twelve_bit_jpeg() -> bytes:
    """A valid header with a sample precision that baseline decoders refuse."""
    data = bytearray(jpeg())
    data[data.index(b"\xff\xc0") + 4] = 12
    return bytes(data)


def grey16_png(values: list[int]) -> bytes:
    """One row of 16-bit grey pixels."""
    return encoded(Image.fromarray(np.array([values], dtype=np.uint16)), "PNG")


def palette_png() -> bytes:
    """Left half red and transparent, right half green and half so; per-index transparency as bytes."""
    image = Image.new("P", (4, 2), 0)
    image.putpalette([*RED, *GREEN])
    image.paste(1, (2, 0, 4, 2))
    return encoded(image, "PNG", transparency=b"\x00\x80")


def rgba_png() -> bytes:
    """Blue, fully transparent."""
    return encoded(Image.new("RGBA", (4, 2), (*BLUE, 0)), "PNG")


def bilevel_png() -> bytes:
    """Left pixel black, right pixel white."""
    image = Image.new("1", (2, 1), 0)
    image.putpixel((1, 0), 1)
    return encoded(image, "PNG")


def animated_gif() -> bytes:
    """A red frame, then a blue one."""
    frames = [Image.new("RGB", (8, 6), colour) for colour in (RED, BLUE)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


def oriented(image: Image.Image, kind: str, orientation: int, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, kind, exif=exif, **options)


def bomb_png(width: int = 30_000, height: int = 30_000) -> bytes:
    """A header that promises 900 million pixels, with hardly any data behind it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(bytes(1000)))


def damaged_png() -> bytes:
    """Whole to its end, but with a zlib stream that is none."""
    header = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b"\x00" * 64) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def tar(members: Iterable[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT, mode: str = "w:") -> bytes:
    """An archive of plain files; a name ending in / is a folder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=form) as archive:  # type: ignore[call-overload]
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            if name.endswith("/"):
                member.type = tarfile.DIRTYPE
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def parquet_file(columns: dict[str, Any], row_group_size: int = 2) -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(pa.table(columns), buffer, row_group_size=row_group_size)
    return buffer.getvalue()
