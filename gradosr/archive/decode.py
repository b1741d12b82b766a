"""Decoding of bytes to pixels, or to the reason for failing; and resizing of pixels to the classifier's input size.

JPEG is decoded by torchvision's libjpeg-turbo (three times Pillow's speed), everything else and CMYK by Pillow. Pillow
first reads every header without decoding, so that `max_pixels` applies before memory is allocated. The formats are
opened by their own classes, not by Image.open. That excludes exotic formats (EPS would start Ghostscript), and makes
`max_pixels` the only limit without changing Pillow's process-wide one. Pillow keeps its own limit of 179 million pixels
for WebP and TIFF, and warns about TIFF from half of that.
"""

import io
import re
import struct
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from PIL.ImageFile import ImageFile
from torch import Tensor
from torchvision.io import ImageReadMode
from torchvision.transforms.v2 import InterpolationMode, functional

from gradosr.archive.image import EMPTY, Fault
from gradosr.config import TransformSettings
from gradosr.text import reason

# torchvision.io.decode_jpeg calls this operator, but warns of deprecation with every image, which -W error would turn
# into an unsupported image. It is looked up here so that a torchvision without it fails at once, not image by image.
_decode_jpeg = torch.ops.image.decode_jpeg

_FORMATS: tuple[tuple[re.Pattern[bytes], Callable[[io.BytesIO], ImageFile]], ...] = tuple(
    (re.compile(magic, re.DOTALL), opened)
    for magic, opened in (
        (rb"\xff\xd8\xff", JpegImagePlugin.JpegImageFile),
        (rb"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
        (rb"GIF8[79]a", GifImagePlugin.GifImageFile),
        (rb"RIFF....WEBP", WebPImagePlugin.WebPImageFile),
        (rb"II[*+]\0|MM\0[*+]", TiffImagePlugin.TiffImageFile),
        (rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", BmpImagePlugin.BmpImageFile),
        (rb"P[1-6]\s+[\d#]", PpmImagePlugin.PpmImageFile),
        (rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", Jpeg2KImagePlugin.Jpeg2KImageFile),
    )
)
_NO_DECODER = re.compile(rb"....ftyp(avif|avis|heic|heix|hevc|heim|mif1|msf1)", re.DOTALL)
_CUT = re.compile(r"truncated|incomplete", re.IGNORECASE)  # in the errors of libjpeg (through torchvision) and Pillow

_ORIENTATION = 0x0112  # EXIF tag
_UPRIGHT: dict[int, Callable[[Tensor], Tensor]] = {  # inverse of each orientation for [3, H, W] (EXIF 2.3, 4.6.4.A)
    1: lambda pixels: pixels,
    2: lambda pixels: pixels.flip(2),
    3: lambda pixels: pixels.flip(1, 2),
    4: lambda pixels: pixels.flip(1),
    5: lambda pixels: pixels.transpose(1, 2),
    6: lambda pixels: pixels.transpose(1, 2).flip(2),
    7: lambda pixels: pixels.transpose(1, 2).flip(1, 2),
    8: lambda pixels: pixels.transpose(1, 2).flip(1),
}
_MAX_ASPECT = 100
_LONGEST_SIDE = 2**31 - 1  # limit of the result table; a longer side means damaged data
_MAX_SCANS = 100
"""Most scans of a JPEG; ten are usual.

A scan of a few bytes processes all pixels again: 50 KB kept the decoder busy for 10 s.
"""
_MAX_TILES = 2**14
"""Most tiles of a JPEG 2000. OpenJPEG allocates 12 KB for each, even for a single pixel: 300 bytes took 750 MB."""
_MAX_RLE_PIXELS = 2**22
"""Most pixels of a run-length encoded bitmap, which Pillow decodes in Python: 100 bytes took 34 s."""
_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")  # start of a JPEG segment; other markers occur within a scan's data
_SCAN, _END = 0xDA, 0xD9
_SIZ = re.compile(rb"\xff\x4f\xff\x51.{4}(.{24})", re.DOTALL)  # in JPEG 2000: sizes and offsets of image and tiles


class Decoded(NamedTuple):
    """The pixels of an image, or the reason that there are none."""

    pixels: Tensor | None
    """Pixels as uint8 [3, height, width], RGB, upright."""
    width: int | None
    """Width after applying the EXIF orientation, below 2^31; known from the header even if decoding failed."""
    height: int | None
    fault: Fault | None


class _Refused(Exception):
    def __init__(self, fault: Fault) -> None:
        super().__init__(*fault)
        self.fault = fault


def decode(data: bytes, max_pixels: int) -> Decoded:
    """Decode an image to RGB, or return a fault: empty, truncated, not_an_image, unsupported or too_large.

    Alpha is dropped, 16 bits are scaled to 8, and an animation is represented by its first frame. Nothing is raised.
    """
    width, height = None, None
    try:
        image = _open(data)
        orientation = _orientation(image)
        if max(image.size) <= _LONGEST_SIDE:
            width, height = image.size if orientation < 5 else (image.height, image.width)
        pixels = _UPRIGHT[orientation](_pixels(image, data, max_pixels))
    except _Refused as refused:
        return Decoded(None, width, height, refused.fault)
    except Exception as error:  # decoders raise anything: OSError, ValueError, SyntaxError, RuntimeError, MemoryError
        return Decoded(None, width, height, _fault(error))
    return Decoded(pixels, pixels.shape[2], pixels.shape[1], None)


def to_input_size(pixels: Tensor, transform: TransformSettings) -> Tensor:
    """Resize and centre-crop uint8 [3, H, W] to uint8 [3, h, w]; normalising is left to the device.

    Bytes instead of floats are sent to the device, which makes the copy a quarter as large and allows a fast integer
    kernel for the resize.
    """
    if transform.resize is not None:
        size = [transform.resize] if isinstance(transform.resize, int) else list(transform.resize)
        if len(size) == 1:
            # A 1 x 60,000 strip whose shorter side became 256 would take 12 GB; the crop sees its centre only.
            height, width = pixels.shape[1:]
            pixels = _cropped(pixels, [min(height, _MAX_ASPECT * width), min(width, _MAX_ASPECT * height)])
        if size != (list(pixels.shape[1:]) if len(size) == 2 else [min(pixels.shape[1:])]):
            pixels = functional.resize(pixels, size, InterpolationMode(transform.interpolation), antialias=True)
    if transform.crop is not None:
        pixels = _cropped(pixels, [transform.crop] * 2 if isinstance(transform.crop, int) else list(transform.crop))
    return pixels.contiguous()


def _cropped(pixels: Tensor, size: list[int]) -> Tensor:
    """Crop to `size`, unless that is the size already.

    torchvision takes as long to find that out as decoding a small image takes.
    """
    return pixels if list(pixels.shape[1:]) == size else functional.center_crop(pixels, size)


def _open(data: bytes) -> ImageFile:
    """Open an image with its header read and no pixel decoded."""
    if not data:
        raise _Refused(EMPTY)
    opened = next((opened for magic, opened in _FORMATS if magic.match(data)), None)
    if opened is None:
        if found := _NO_DECODER.match(data):
            raise _Refused(Fault("unsupported", f"no decoder for {found[1].decode()}"))
        raise _Refused(Fault("not_an_image", "not in a known image format"))
    stream = io.BytesIO(data)
    try:
        return opened(stream)
    except Image.DecompressionBombError:
        raise
    except Exception as error:
        cut = _riff_size(data) > len(data) if data.startswith(b"RIFF") else stream.tell() >= len(data)
        raise _Refused(Fault("truncated" if cut else "unsupported", reason(error))) from error


def _riff_size(data: bytes) -> int:
    return 8 + int.from_bytes(data[4:8], "little")


def _orientation(image: ImageFile) -> int:
    if "exif" not in image.info:  # in a TIFF, Pillow applies the tag itself
        return 1
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # damaged EXIF data says nothing about the pixels
        return 1
    return orientation if orientation in _UPRIGHT else 1


def _pixels(image: ImageFile, data: bytes, max_pixels: int) -> Tensor:
    if image.width * image.height > max_pixels:
        text = f"{image.width} x {image.height} pixels are more than max_pixels, {max_pixels}"
        raise _Refused(Fault("too_large", text))
    if image.format == "JPEG" and data.count(b"\xff\xda") > _MAX_SCANS and (scans := _scans(data)) > _MAX_SCANS:
        raise _Refused(Fault("unsupported", f"{scans} scans are more than {_MAX_SCANS}"))
    if image.format == "JPEG2000" and (tiles := _tiles(data)) > _MAX_TILES:
        raise _Refused(Fault("unsupported", f"{tiles} tiles are more than {_MAX_TILES}"))
    if any(tile[0] == "bmp_rle" for tile in image.tile) and image.width * image.height > _MAX_RLE_PIXELS:
        text = f"{image.width} x {image.height} run-length encoded pixels are more than {_MAX_RLE_PIXELS}"
        raise _Refused(Fault("too_large", text))
    if image.format == "JPEG" and image.mode in ("RGB", "L"):
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        pixels: Tensor = _decode_jpeg(encoded, ImageReadMode.RGB.value)
        return pixels
    return torch.from_numpy(_rgb(image)).permute(2, 0, 1)


def _scans(data: bytes) -> int:
    """Count the scans of a JPEG up to its end mark; phones append films, whose bytes can look like anything."""
    scans, at = 0, 2
    while (found := _MARKER.search(data, at)) and found[0][-1] != _END:
        scans += found[0][-1] == _SCAN
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return scans


def _tiles(data: bytes) -> int:
    """Count the tiles of a JPEG 2000 from its codestream; 0 if there is none."""
    if not (found := _SIZ.search(data)):
        return 0
    width, height, _, _, tile_width, tile_height = struct.unpack(">6I", found[1])
    tiles: int = -(-width // max(1, tile_width)) * -(-height // max(1, tile_height))  # rounded up
    return tiles


def _rgb(image: ImageFile) -> NDArray[np.uint8]:
    """Decode an image with Pillow to RGB [H, W, 3]."""
    image.load()
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        # Pillow's own conversion clips at 255, which leaves a white image.
        grey = ((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8)
        return np.repeat(grey[:, :, np.newaxis], 3, axis=2)
    if image.mode in ("I", "F"):
        raise _Refused(Fault("unsupported", f"pixels of 32 bits (mode {image.mode}) have no known range"))
    image.info.pop("transparency", None)  # it changes no colour, but makes Pillow warn
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _fault(error: Exception) -> Fault:
    if isinstance(error, Image.DecompressionBombError):
        return Fault("too_large", reason(error))
    cut = isinstance(error, EOFError) or _CUT.search(str(error))
    return Fault("truncated" if cut else "unsupported", reason(error))
