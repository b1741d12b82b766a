"""Decoding of bytes to pixels, or to the reason for failing; and resizing of pixels to the classifier's input size.

JPEG is decoded by torchvision's libjpeg-turbo (three times Pillow's speed), everything else and CMYK by Pillow. Pillow
first reads every header without decoding, so that `max_pixels` applies before memory is allocated. The formats are
opened by their own classes, not by Image.open. That excludes exotic formats (EPS would start Ghostscript), and makes
`max_pixels` the only limit without changing Pillow's process-wide one. Pillow keeps its own limit of 179 million pixels
for WebP and TIFF, and warns about TIFF from half of that. Of a PNG it is given nothing but what makes up the pixels:
it refuses an image for a megabyte of text, a damaged profile or a checksum of something that nobody reads.
"""

import io
import mmap
import re
import struct
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import PIL
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

from gradosr.archive import avif
from gradosr.archive.image import EMPTY, Fault
from gradosr.config import TransformSettings
from gradosr.errors import MachineFault, machine_fault
from gradosr.text import reason

try:
    from PIL import AvifImagePlugin
except ImportError:  # Pillow before 11.2
    AvifImagePlugin = None  # type: ignore[assignment]
else:
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # each image has its own thread already

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
_AVIF, _HEIC = {b"avif", b"avis"}, {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_JPEG_XL = re.compile(rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n")
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
_MAX_AVIF_FRAMES = 4
"""Most frames of an AVIF, in sizes of the image: its pixels and alpha, a thumbnail, layers of growing detail."""
_NEEDED = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"eXIf", b"acTL", b"fcTL", b"fdAT")
"""Chunks of a PNG that its first frame and orientation come from."""
_SPARE = 64 * 2**20
"""Bytes beside 16 for each pixel that a machine must have left for a failed decoder to have failed over its image."""
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

    Alpha is dropped, 16 bits are scaled to 8, and an animation is represented by its first frame. Raises MachineFault
    where this machine lacks something, such as memory, and nothing else.
    """
    width, height = None, None
    try:
        image = _open(data)
        orientation = _orientation(image)
        if max(image.size) <= _LONGEST_SIDE:
            width, height = image.size if orientation < 5 else (image.height, image.width)
        pixels = _UPRIGHT[orientation](_pixels(image, data, max_pixels))
    except _Refused as refused:
        if refused.__cause__:
            _check_memory(refused.__cause__, _webp_pixels(data), max_pixels)
        return Decoded(None, width, height, refused.fault)
    except Exception as error:  # decoders raise anything: OSError, ValueError, SyntaxError, RuntimeError, MemoryError
        _check_memory(error, (width or 0) * (height or 0), max_pixels)
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


def _check_memory(error: BaseException, pixels: int, max_pixels: int) -> None:
    """Raise MachineFault if a decoder failed for want of memory.

    Most C libraries call that a broken image, so what the pixels may take is asked for here once more, untouched.
    """
    if fault := machine_fault(error):
        raise fault from error
    try:
        mmap.mmap(-1, _SPARE + 16 * min(pixels, max_pixels)).close()
    except OSError as lack:
        raise MachineFault(f"{machine_fault(lack) or lack}") from error


def _open(data: bytes) -> ImageFile:
    """Open an image with its header read and no pixel decoded."""
    if not data:
        raise _Refused(EMPTY)
    opened = next((opened for magic, opened in _FORMATS if magic.match(data)), None)
    brands = avif.brands(data)
    if opened is None and brands & _AVIF and AvifImagePlugin is not None and AvifImagePlugin.SUPPORTED:
        opened = AvifImagePlugin.AvifImageFile
        # An animation has a still image beside its frames, which the brand of still images makes libavif take.
        data = data[:8] + b"avif" + data[12:] if brands & {b"avis"} else data
    if opened is None:
        raise _Refused(_undecodable(data, brands))
    if opened is PngImagePlugin.PngImageFile:
        data = _bare_png(data)
    stream = io.BytesIO(data)
    try:
        return opened(stream)
    except Image.DecompressionBombError:
        raise
    except Exception as error:
        if brands:
            cut = avif.is_cut(data)
        else:
            cut = _riff_size(data) > len(data) if data.startswith(b"RIFF") else stream.tell() >= len(data)
        raise _Refused(Fault("truncated" if cut else "unsupported", reason(error))) from error


def _undecodable(data: bytes, brands: set[bytes]) -> Fault:
    """Return the fault of what no decoder here takes, with the package that would."""
    if brands & _AVIF:
        return Fault("unsupported", f"no decoder for AVIF in Pillow {PIL.__version__}; Pillow 11.3 or newer brings one")
    if brands & _HEIC:
        return Fault("unsupported", "no decoder for HEIC; convert it first, for example with the package pillow-heif")
    if _JPEG_XL.match(data):
        text = "no decoder for JPEG XL; convert it first, for example with the package pillow-jxl-plugin"
        return Fault("unsupported", text)
    return Fault("not_an_image", "not in a known image format")


def _bare_png(data: bytes) -> bytes:
    """Leave out the chunks of a PNG that say nothing of its first frame; what is damaged or cut stays as it is."""
    at, kept = 8, [data[:8]]
    while at + 8 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        if end > len(data) or not kind.isalpha():
            break
        if kind in _NEEDED:
            kept.append(data[at:end])
        at = end
        if kind == b"IEND":
            return b"".join(kept)
    return b"".join((*kept, data[at:]))


def _webp_pixels(data: bytes) -> int:
    """Return the pixels of a WebP, whose canvas is made when it is opened; 0 for any other format."""
    if data[:4] != b"RIFF" or len(data) < 30:
        return 0
    if data[12:16] == b"VP8X":
        return (int.from_bytes(data[24:27], "little") + 1) * (int.from_bytes(data[27:30], "little") + 1)
    sizes = int.from_bytes(data[21:25], "little") if data[12:16] == b"VP8L" else int.from_bytes(data[26:30], "little")
    shift = 14 if data[12:16] == b"VP8L" else 16
    return ((sizes & 0x3FFF) + 1) * ((sizes >> shift & 0x3FFF) + 1)


def _riff_size(data: bytes) -> int:
    return 8 + int.from_bytes(data[4:8], "little")


def _orientation(image: ImageFile) -> int:
    if "exif" not in image.info:  # in a TIFF, Pillow applies the tag itself
        return 1
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception as error:  # damaged EXIF data says nothing about the pixels
        if fault := machine_fault(error):
            raise fault from error
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
    if image.format == "AVIF":
        _check_avif(data, image.width * image.height)
    if any(tile[0] == "bmp_rle" for tile in image.tile) and image.width * image.height > _MAX_RLE_PIXELS:
        text = f"{image.width} x {image.height} run-length encoded pixels are more than {_MAX_RLE_PIXELS}"
        raise _Refused(Fault("too_large", text))
    if image.format == "JPEG" and image.mode in ("RGB", "L"):
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        pixels: Tensor = _decode_jpeg(encoded, ImageReadMode.RGB.value)
        return pixels
    return torch.from_numpy(rgb(image)).permute(2, 0, 1)


def _check_avif(data: bytes, pixels: int) -> None:
    """Raise _Refused if the streams of an AVIF hold more than an image of its size can need."""
    try:
        found = avif.frame_pixels(data)
    except avif.NotAvif as error:
        raise _Refused(Fault("unsupported", f"damaged AVIF: {error}")) from error
    if found > _MAX_AVIF_FRAMES * pixels + _MAX_RLE_PIXELS:
        text = f"AV1 frames of {found} pixels in an image of {pixels}"
        raise _Refused(Fault("too_large", text))


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


def rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Decode an image that Pillow has opened or made to RGB [H, W, 3]."""
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
