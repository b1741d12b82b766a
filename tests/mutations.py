"""Images, tars and Parquet files as broken disks, cut transfers and malice leave them.

Everything is made from a number: the same number gives the same bytes, so that a failure is repeated by its number.
"""

import gzip
import random
import re
import struct
import tarfile
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torchvision.io  # noqa: F401 - registers torch.ops.image
from hostile import encoded, grey16_png, noise, oriented, palette_png, rgba_png, twelve_bit_jpeg
from PIL import Image
from pyarrow import parquet

_LONGEST = 200_000  # bytes of a mutated file: what takes long for being long is no find


@cache
def valid_images() -> tuple[tuple[str, bytes], ...]:
    """Suffix and bytes of one image for each format, and each kind of pixels and compression within it."""
    photo = noise(12, 8).resize((48, 32), Image.Resampling.BICUBIC)
    tensor = torch.from_numpy(np.array(photo)).permute(2, 0, 1)
    frames = {"save_all": True, "append_images": [noise(48, 32, 1), noise(48, 32, 2)]}
    one_bit, palette = photo.convert("1"), photo.convert("P")
    grey16 = Image.fromarray(np.arange(48 * 32, dtype=np.uint16).reshape(32, 48) * 40)
    options: dict[str, list[tuple[Image.Image, dict[str, Any]]]] = {
        "JPEG": [
            *((photo, {"quality": 80, **more}) for more in ({}, {"progressive": True}, {"subsampling": 0})),
            *((photo, {"restart_marker_blocks": 2, "comment": b"text"}), (noise(48, 32), {"icc_profile": bytes(300)})),
            *((photo.convert("L"), {"progressive": True}), (photo.convert("CMYK"), {})),
        ],
        "PNG": [
            *((photo, {}), (noise(48, 32), {"dpi": (72, 72), "icc_profile": bytes(300)}), (photo, frames)),
            *((photo.convert("RGBA"), {}), (one_bit, {}), (palette, {"transparency": 3}), (grey16, {})),
        ],
        "GIF": [(photo, {}), (palette, {"interlace": 0, "comment": b"text"}), (photo, frames)],
        "WEBP": [(photo, {}), (photo, {"lossless": True}), (photo.convert("RGBA"), {}), (photo, frames)],
        "TIFF": [
            *((photo, {"compression": how}) for how in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")),
            *((one_bit, {"compression": "group4"}), (palette, {}), (grey16, {"big_tiff": True}), (photo, frames)),
        ],
        "BMP": [(photo, {}), (photo.convert("L"), {}), (one_bit, {}), (palette, {})],
        "PPM": [(photo, {}), (photo.convert("L"), {}), (one_bit, {}), (grey16, {})],
        "JPEG2000": [
            *((photo, {}), (photo.convert("RGBA"), {"tile_size": (16, 16)}), (grey16, {})),
            *((photo, {"no_jp2": True, "irreversible": True}), (photo.convert("L"), {"no_jp2": True})),
        ],
        "AVIF": [(photo, {}), (photo.convert("RGBA"), {"quality": 90}), (photo.convert("L"), {}), (photo, frames)],
    }
    suffixes = {"JPEG": "jpg", "WEBP": "webp", "TIFF": "tif", "JPEG2000": "jp2"}
    made = [
        (suffixes.get(kind, kind.lower()), encoded(image, kind, **each))
        for kind, variants in options.items()
        for image, each in variants
    ]
    made += [("jpg", oriented(photo, "JPEG", 6)), ("tif", oriented(photo, "TIFF", 8)), ("jpg", twelve_bit_jpeg())]
    # As torchvision.io writes them, less its deprecation warning.
    made += [("jpg", torch.ops.image.encode_jpeg(tensor, 75).numpy().tobytes())]
    made += [("png", torch.ops.image.encode_png(tensor, 6).numpy().tobytes())]
    made += [("png", palette_png()), ("png", rgba_png()), ("png", grey16_png([0, 9, 65_535])), ("bmp", rle_bmp())]
    return (*made, ("ppm", b"P3 2 2 255 " + b"1 2 3 " * 4), ("heic", b"\0\0\0\x1cftypheic" + bytes(40)))


def rle_bmp(width: int = 8, height: int = 4, body: bytes | None = None) -> bytes:
    """A run-length encoded bitmap, which Pillow reads but does not write; of three colours, for Pillow before 13."""
    body = body if body is not None else bytes([width, 1, 0, 0]) * height + b"\0\1"
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(body), 0, 0, 3, 0) + bytes(4) + b"\xff" * 4
    info += b"\x80\0\0\0"
    return struct.pack("<2sIHHI", b"BM", 14 + len(info) + len(body), 0, 0, 14 + len(info)) + info + body


def mutated_image(number: int) -> tuple[str, bytes]:
    """Name and bytes; one in nine is left as it was."""
    rng = random.Random(f"image {number}")
    suffix, data = rng.choice(valid_images())
    for _ in range(rng.choice([0, 1, 1, 1, 1, 2, 2, 3, 5])):
        data = rng.choice(_IMAGE_MUTATIONS)(rng, data)[:_LONGEST]
    return f"{number:06}.{suffix}", _mended_png(data) if rng.random() < 0.7 else data


Mutation = Callable[[random.Random, bytes], bytes]


def _place(rng: random.Random, data: bytes, longest: int = 64) -> tuple[int, int]:
    """Start and end of some bytes; the first few hundred, where headers are, come as often as all others."""
    start = rng.randrange(min(len(data), rng.choice([300, len(data) + 1])) or 1)
    return start, min(len(data), start + rng.randint(1, longest))


def _flip_bits(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 3, 20]) if data else 0):
        changed[_place(rng, data)[0]] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwrite(rng: random.Random, data: bytes) -> bytes:
    start, end = _place(rng, data)
    return data[:start] + rng.randbytes(end - start) + data[end:]


def _zero(rng: random.Random, data: bytes) -> bytes:
    start, end = _place(rng, data, 600)
    return data[:start] + bytes(end - start) + data[end:]


def _insert(rng: random.Random, data: bytes) -> bytes:
    start, end = _place(rng, data)
    return data[:start] + rng.randbytes(end - start) + data[start:]


def _drop(rng: random.Random, data: bytes) -> bytes:
    start, end = _place(rng, data, 300)
    return data[:start] + data[end:]


def _cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _repeat(rng: random.Random, data: bytes) -> bytes:
    start, end = _place(rng, data, 600)
    return data[:end] + data[start:end] * rng.choice([1, 1, 3, 300]) + data[end:]


def _extreme(rng: random.Random, data: bytes) -> bytes:
    """An integer at the edge of its range, as a length, count or offset may be."""
    code = rng.choice(["<H", ">H", "<I", ">I", "<Q", ">Q", "B"])
    bits = 8 * struct.calcsize(code)
    value = rng.choice([0, 1, 2 ** (bits - 1) - 1, 2 ** (bits - 1), 2**bits - 1, 2**bits - 2])
    start, _ = _place(rng, data)
    return data[:start] + struct.pack(code, value) + data[start + bits // 8 :]


_SEGMENT = re.compile(rb"\xff[\xc0-\xfe]|\0...(?=[a-zA-Z]{4})|VP8|ANMF|!|,", re.DOTALL)


def _repeat_segment(rng: random.Random, data: bytes) -> bytes:
    """A JPEG segment, PNG chunk, JP2 box or GIF block comes again, somewhere."""
    starts = [found.start() for found in _SEGMENT.finditer(data)]
    if len(starts) < 2:
        return data
    first = rng.randrange(len(starts) - 1)
    segment, target = data[starts[first] : starts[first + 1]], rng.choice(starts)
    return data[:target] + segment * rng.choice([1, 1, 2, 200]) + data[target:]


def _splice(rng: random.Random, data: bytes) -> bytes:
    _, other = rng.choice(valid_images())
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other)) :]


def _swap_magic(rng: random.Random, data: bytes) -> bytes:
    _, other = rng.choice(valid_images())
    length = rng.choice([3, 4, 8, 12, 16, 40])
    return other[:length] + data[length:]


_SIZE_FIELDS = tuple(
    (re.compile(pattern, re.DOTALL), code)
    for pattern, code in (
        (rb"\xff[\xc0-\xc2]\0.\x08(.{4})", ">HH"),
        (rb"IHDR(.{8})", ">II"),
        (rb"^GIF8.a(.{4})", "<HH"),
        (rb",.{4}(.{4})", "<HH"),
        (rb"^BM.{16}(.{8})", "<II"),
        (rb"\x9d\x01\x2a(.{4})", "<HH"),
        (rb"VP8L.{4}/(.{4})", "<HH"),
        (rb"VP8X.{8}(.{6})", "<HHH"),
        (rb"[\x00\x01\x02\x06\x11\x15-\x17\x42-\x45]\x01[\x03\x04]\0.{4}(.{4})", "<I"),  # a TIFF's tags
        (rb"ihdr(.{8})", ">II"),
        (rb"\xff\x51.{4}(.{8})", ">II"),  # a JPEG 2000's size
        (rb"\xff\x51.{20}(.{8})", ">II"),  # of its tiles
        (rb"\xff\x51.{36}(.{2})", ">H"),  # how many components
        (rb"ispe.{4}(.{8})", ">II"),
    )
)
_SIZES = (0, 1, 3, 100, 4000, 4096, 16_383, 65_535, 2**31 - 1, 2**32 - 1)


def _inflate(rng: random.Random, data: bytes) -> bytes:
    """Another width or height in the header, mostly a larger one."""
    if data[:1] == b"P":
        return re.sub(rb"\d+\s\d+", b"%d %d" % (rng.choice(_SIZES), rng.choice(_SIZES)), data, count=1)
    fields = [(found, code) for pattern, code in _SIZE_FIELDS for found in pattern.finditer(data)]
    if not fields:
        return data
    found, code = rng.choice(fields)
    most = 2 ** (8 * struct.calcsize(code[1])) - 1
    sizes = (min(rng.choice(_SIZES), most) for _ in code[1:])
    return data[: found.start(1)] + struct.pack(code, *sizes) + data[found.end(1) :]


_MUTATIONS: tuple[Mutation, ...] = (
    *(_flip_bits, _overwrite, _zero, _insert, _drop, _cut, _repeat, _extreme, _extreme),
)
_IMAGE_MUTATIONS: tuple[Mutation, ...] = (*_MUTATIONS, _repeat_segment, _splice, _swap_magic, _inflate, _inflate)


def _mended_png(data: bytes) -> bytes:
    """A PNG's checksums made right again, so that the damage reaches the decoder behind them."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    mended, at = bytearray(data), 8
    while at + 12 <= len(mended):
        end = at + 8 + int.from_bytes(mended[at : at + 4], "big")
        if end + 4 > len(mended):
            break
        mended[end : end + 4] = struct.pack(">I", zlib.crc32(mended[at + 4 : end]))
        at = end + 4
    return bytes(mended)


def mutated_tar(number: int) -> tuple[str, bytes]:
    """Name and bytes of an archive, plain or compressed, damaged before or after that."""
    rng = random.Random(f"tar {number}")
    data, compressed = _odd_tar(rng), rng.random() < 0.35
    for _ in range(rng.choice([0, 1, 1, 2, 3])):
        data = rng.choice((*_MUTATIONS, _change_header, _change_header, _change_header))(rng, data)[: 5 * _LONGEST]
    if not compressed:
        return f"{number:06}.tar", data
    data = gzip.compress(data, 1)
    for _ in range(rng.choice([0, 1, 2])):
        data = rng.choice(_MUTATIONS)(rng, data)
    return f"{number:06}.tar.gz", data


_NAMES = (
    *("a.png", "a.cls", "b.jpg", "./b.cls", "../../etc/passwd.png", "/absolute.jpg", "a.png", "dir/", "x/y.webp"),
    *(
        "long/" * 60 + "name.png",
        "é" * 130 + ".jpg",
        "d\udcff.png",
        "\n\x1b[31m.gif",
        ".cls",
        "notes.json",
        "n\0ul.png",
    ),
)
_KINDS = (*(b"012345678xgLKSDVAX"[at : at + 1] for at in range(18)), b"\0", b"~")
_PAX = (
    {"size": "-1536"},
    {"size": "99999999999999999999"},
    {"path": "renamed.png", "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9999999999"},
    {"GNU.sparse.map": "0,9,3,1", "GNU.sparse.size": "99"},
    {"path": "p" * 5000 + ".png"},
    {"mtime": "nan", "uid": "x", "hdrcharset": "BINARY"},
)


def _odd_tar(rng: random.Random) -> bytes:
    """Links, sparse members, folders, hostile and repeated names, pax records that lie."""
    form = rng.choice([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    blocks = []
    for number in range(rng.choice([0, 1, 4, 8])):
        _, data = rng.choice(valid_images())
        member = tarfile.TarInfo(rng.choice(_NAMES))
        if form == tarfile.USTAR_FORMAT:
            member.name = member.name[-90:].encode(errors="replace").decode()[-40:]
        member.size = len(data)
        if rng.random() < 0.2:
            member.type, member.linkname = rng.choice(_KINDS), "/etc/passwd"
        if rng.random() < 0.2:
            member.pax_headers = rng.choice(_PAX)
        if number == 0 and rng.random() < 0.5:
            member.type = tarfile.REGTYPE
        blocks += [member.tobuf(form, "utf-8", "surrogateescape"), data, bytes(-len(data) % 512)]
    return b"".join(blocks) + bytes(1024)


_TAR_FIELDS = ((0, 100), (100, 8), (124, 12), (124, 12), (136, 12), (156, 1), (156, 1), (257, 8), (345, 155))
"""Offset and length: name, mode, size, mtime, type, magic, prefix."""


def _change_header(rng: random.Random, data: bytes) -> bytes:
    """A field of one header becomes noise, a huge number or another type, under a checksum that is right."""
    starts = [at - 257 for at in (found.start() for found in re.finditer(b"ustar", data)) if at >= 257]
    if not starts:
        return data
    start, (field, length) = rng.choice(starts), rng.choice(_TAR_FIELDS)
    header = bytearray(data[start : start + 512].ljust(512, b"\0"))
    number = rng.choice([0, 1, 511, 10**5, 2**31, 2**33, 2**62])
    values = (
        *(rng.randbytes(length), bytes(length), b"7" * length, b"\xff" * length, rng.choice(_KINDS)),
        *(b"\x80" + number.to_bytes(11, "big"), b"%011o\0" % min(number, 8**11 - 1), b"-%o\0" % 511),
    )
    header[field : field + length] = rng.choice(values)[:length].ljust(length, b"\0")
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:]) + 8 * 32)
    return data[:start] + bytes(header) + data[start + 512 :]


def mutated_parquet(number: int) -> tuple[str, bytes]:
    """Name and bytes; the damage is in the footer as often as in all that comes before it."""
    rng = random.Random(f"parquet {number}")
    data = _odd_parquet(rng)
    for _ in range(rng.choice([0, 1, 1, 2, 3])):
        footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
        mutation = rng.choice((*_MUTATIONS, _stretch, _stretch))
        if 0 < footer < len(data) - 12 and rng.random() < 0.5:  # under a length that is right
            changed = mutation(rng, data[footer:-8])
            data = data[:footer] + changed + struct.pack("<I", len(changed)) + b"PAR1"
        else:
            data = mutation(rng, data)
    return f"{number:06}.parquet", data


def _stretch(rng: random.Random, data: bytes) -> bytes:
    """Thrift's integers have any length: one becomes an extreme of 32 or 64 bits (zigzag), as a size or count may."""
    start, _ = _place(rng, data)
    return (
        data[:start]
        + rng.choice([b"\xfe\xff\xff\xff\x0f", b"\xff" * 4 + b"\x0f", b"\xff" * 9 + b"\x01"])
        + data[start + rng.choice([1, 2, 3, 5]) :]
    )


def _odd_parquet(rng: random.Random) -> bytes:
    """Plain and struct columns, nulls, nested and wrong types, no rows, many row groups, every compression."""
    rows = rng.choice([0, 1, 5, 40])
    images = [rng.choice([rng.choice(valid_images())[1]] * 9 + [None]) for _ in range(rows)]
    structs = [None if image is None else {"bytes": image, "path": "p/é.png"} for image in images]
    column = rng.choice(
        [
            *(
                pa.array(images, pa.binary()),
                pa.array(images, pa.large_binary()),
                pa.array(images, pa.binary()).dictionary_encode(),
            ),
            *[pa.array(structs, pa.struct({"bytes": pa.binary(), "path": pa.string()}))] * 3,
            *(pa.array([[each] for each in images], pa.list_(pa.binary())), pa.array([1] * rows)),
        ]
    )
    labels = rng.choice([pa.array(["cat"] * rows, pa.string()), pa.array(list(range(rows)), pa.int64()), column])
    body = pa.BufferOutputStream()
    parquet.write_table(
        pa.table({"image": column, "label": labels, "more": pa.array([[{"a": [1]}]] * rows)}),
        body,
        row_group_size=rng.choice([1, 3, 1000]),
        compression=rng.choice(["none", "snappy", "zstd", "gzip", "brotli", "lz4"]),
        use_dictionary=rng.random() < 0.5,
        data_page_version=rng.choice(["1.0", "2.0"]),
        data_page_size=rng.choice([100, 2**20]),
        write_page_checksum=rng.random() < 0.1,
        store_schema=rng.random() < 0.7,
    )
    return body.getvalue().to_pybytes()
