"""Small files that ask for gigabytes, or for hours."""

import gzip
import re
import struct
import tarfile
from functools import cache
from typing import Any

import pyarrow as pa
from hostile import encoded, jpeg, noise, png
from mutations import rle_bmp
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pyarrow import parquet

MEGABYTE = 2**20


def image_bombs() -> dict[str, bytes]:
    """Make the hostile files, by name."""
    return {
        "scans.jpg": scan_bomb(5000),
        "scans-of-one-block.jpg": scan_bomb(5000, (8, 8)),
        "coefficients.jpg": resized_jpeg(encoded(noise(), "JPEG", progressive=True), 4096, 4096),
        "grey.jpg": resized_jpeg(jpeg(), 4096, 4096),
        "lines.bmp": rle_bmp(2**24, 10, bytes([1, 1, 0, 0]) * 10),
        "jump.bmp": rle_bmp(2**24, 10, b"\0\2\xff\xff" * 2),
        "tiles.jp2": jp2_bomb(3, 250),
        "components.jp2": jp2_bomb(16_000, 120),
        "canvas.webp": webp_canvas(),
        "text.png": text_bomb(),
        "stream.avif": avif_bomb(8192),
        "comment.gif": b"GIF89a\1\0\1\0\0\0\0!\xfe" + (b"\xff" + bytes(255)) * 40_000 + b"\0;",
    }


def resized_jpeg(data: bytes, width: int, height: int) -> bytes:
    """Another size in the frame header."""
    at = max(data.find(b"\xff\xc0\0\x11\x08"), data.find(b"\xff\xc2\0\x11\x08"))
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


def scan_bomb(scans: int, size: tuple[int, int] = (4096, 4096)) -> bytes:
    """A progressive JPEG that goes over its coefficients again and again, a few bytes each time."""
    data = encoded(Image.new("RGB", (64, 64)), "JPEG", progressive=True)
    starts = [at for at in range(len(data)) if data[at : at + 2] in (b"\xff\xda", b"\xff\xd9")]
    last = data[starts[-2] : starts[-1]]
    return resized_jpeg(data[: starts[-1]], *size) + last * scans + b"\xff\xd9"


def jp2_bomb(components: int, tiles: int) -> bytes:
    """A JPEG 2000 of tiles x tiles pixels, each a tile, and any components, behind a header box that says RGB."""

    def box(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", 8 + len(body)) + kind + body

    size = struct.pack(">HHIIIIIIIIH", 38 + 3 * components, 0, tiles, tiles, 0, 0, 1, 1, 0, 0, components)
    style = b"\xff\x52\0\x0c\0\0\0\1\0\0\4\4\0\1"
    quantised = b"\xff\x5c\0\4\x40\x40"
    codestream = b"\xff\x4f\xff\x51" + size + b"\7\1\1" * components + style + quantised
    codestream += b"\xff\x90\0\x0a\0\0\0\0\0\0\0\1\xff\x93" + bytes(100) + b"\xff\xd9"
    header = box(b"ihdr", struct.pack(">IIHBBBB", tiles, tiles, 3, 7, 7, 0, 0)) + box(b"colr", b"\1\0\0\0\0\0\x10")
    begin = box(b"jP  ", b"\r\n\x87\n") + box(b"ftyp", b"jp2 \0\0\0\0jp2 ")
    return begin + box(b"jp2h", header) + box(b"free", bytes(8)) + box(b"jp2c", codestream)


def webp_canvas() -> bytes:
    """An animation whose canvas has the most pixels there can be, around one small frame."""
    frames = [noise(8, 8, 1), noise(8, 8, 2)]
    data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:])
    at = data.index(b"VP8X") + 12
    return data[:at] + (16_383).to_bytes(3, "little") * 2 + data[at + 6 :]


def avif_bomb(side: int) -> bytes:
    """An AVIF of 8 x 8 pixels, by its container; the stream within has another size."""
    data = encoded(Image.new("RGB", (side, side)), "AVIF", quality=1, speed=10)
    return data.replace(struct.pack(">II", side, side), struct.pack(">II", 8, 8))


def text_bomb() -> bytes:
    """A PNG with a compressed text of 100 MB."""
    info = PngInfo()
    info.add_text("a", "b" * 100 * MEGABYTE, zip=True)
    return encoded(Image.new("RGB", (4, 4)), "PNG", pnginfo=info)


@cache
def zeros(megabytes: int) -> bytes:
    """Compressed; gzip files one behind another are one file."""
    return gzip.compress(bytes(megabytes * MEGABYTE))


def archive_bombs() -> dict[str, bytes]:
    """Tar archives by file name."""
    return {
        "members.tar.gz": member_bomb(50, 12),
        "labels.tar.gz": label_bomb(5_000),
        "names.tar.gz": name_bomb(5_000),
        "sparse.tar.gz": sparse_bomb(),
        "sparse-map.tar.gz": sparse_map_bomb(),
        "skipped.tar.gz": member_bomb(300, 1, ".bin"),
    }


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


def member_bomb(megabytes: int, members: int, suffix: str = ".png") -> bytes:
    """Members of nothing but zeros, a thousandth of their size."""
    body = zeros(megabytes)
    heads = (gzip.compress(header(f"{number}{suffix}", megabytes * MEGABYTE)) for number in range(members))
    return b"".join(head + body for head in heads) + gzip.compress(bytes(1024))


def name_bomb(members: int) -> bytes:
    """Members of nothing but a name of 100,000 letters."""
    names = (f"{number:06}{'n' * 100_000}.png" for number in range(members))
    return b"".join(gzip.compress(header(name, 0)) for name in names) + gzip.compress(bytes(1024))


def label_bomb(members: int) -> bytes:
    """Labels as long as books."""
    text = b"x" * 60_000 + bytes(-60_000 % 512)
    samples = (header(f"{n:06}.cls", 60_000) + text + header(f"{n:06}.png", 0) for n in range(members))
    return b"".join(gzip.compress(sample, 1) for sample in samples) + gzip.compress(bytes(1024))


def sparse_bomb(megabytes: int = 100) -> bytes:
    """A sparse member whose map goes on and on."""
    first = bytearray(header("a.png", 0, tarfile.GNUTYPE_SPARSE))
    first[482] = 1  # the map is continued in the next block
    first[148:156] = b"%06o\0 " % (sum(first[:148]) + sum(first[156:]) + 8 * 32)
    block = b"00000000001\0" * 42 + b"\1".ljust(8, b"\0")
    return gzip.compress(bytes(first)) + gzip.compress(block * (MEGABYTE // 512)) * megabytes


def sparse_map_bomb(megabytes: int = 30) -> bytes:
    """Write a sparse map as pax does: a count, and numbers, a line each."""
    member = tarfile.TarInfo("a.png")
    member.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "1"}
    lines = b"999999999\n" + b"1\n" * (MEGABYTE // 2)
    return (
        gzip.compress(member.tobuf(tarfile.PAX_FORMAT))
        + gzip.compress(lines)
        + gzip.compress(b"1\n" * (MEGABYTE // 2)) * (megabytes - 1)
    )


def parquet_bombs() -> dict[str, bytes]:
    """Make the hostile files, by name."""
    return {
        "first.parquet": parquet_bytes(png()),
        "value.parquet": parquet_bytes(bytes(300 * MEGABYTE)),
        "dictionary.parquet": parquet_bytes(bytes(20 * MEGABYTE), 64),
        "dictionaries.parquet": unlike_images(),
        "labels.parquet": parquet_bytes(png(), 1000, label="x" * MEGABYTE),
        "declared.parquet": declared(),
        "rows.parquet": parquet_bytes(b"", 50_000),
    }


def parquet_bytes(image: bytes, rows: int = 1, label: str = "cat", **options: Any) -> bytes:
    """Write one image and label for every row, and into the file once."""
    first = pa.array([0] * rows)
    columns = {"image": pa.array([image]).dictionary_encode().take(first)}
    columns["label"] = pa.array([label]).dictionary_encode().take(first)
    options = {"dictionary_pagesize_limit": 2**30, "store_schema": False, **options}
    body = pa.BufferOutputStream()
    parquet.write_table(pa.table(columns), body, compression="zstd", **options)
    return body.getvalue().to_pybytes()


def unlike_images(count: int = 500) -> bytes:
    """A row group of images of a megabyte, in a column that Arrow takes back as a dictionary of all of them."""
    images = pa.array([b"%d" % number + bytes(MEGABYTE) for number in range(count)])
    body = pa.BufferOutputStream()
    parquet.write_table(pa.table({"image": images.dictionary_encode()}), body, compression="zstd")
    return body.getvalue().to_pybytes()


def declared() -> bytes:
    """A page header that declares two gigabytes."""
    data = parquet_bytes(noise(20, 20).tobytes())
    size = rb"(PAR1\x15\x04\x15)[\x80-\xff]*[\0-\x7f]"  # the first field after the page's type, of any length
    return re.sub(size, lambda found: found[1] + b"\xfe\xff\xff\xff\x0f", data, count=1)
