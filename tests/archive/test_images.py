import io
import random
import time
import tracemalloc
import zlib

import numpy as np
import PIL
import pytest
import torch
from bombs import avif_bomb, jp2_bomb, scan_bomb
from hostile import (
    BLUE,
    GREEN,
    RED,
    animated_gif,
    bilevel_png,
    bomb_png,
    cmyk_jpeg,
    cut,
    damaged_png,
    encoded,
    grey16_png,
    grey_jpeg,
    jpeg,
    noise,
    oriented,
    palette_png,
    png,
    png_chunk,
    rgba_png,
    twelve_bit_jpeg,
)
from mutations import rle_bmp
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional

from gradosr.archive import decode as decoding
from gradosr.archive.decode import decode, to_input_size
from gradosr.archive.image import Fault
from gradosr.config import MAX_PIXELS, TransformSettings


def halves(width=40, height=20):
    """Left half red, right half blue."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


def status(data, max_pixels=MAX_PIXELS):
    fault = decode(data, max_pixels).fault
    return fault and fault.status


def colour(decoded, x, y):
    return tuple(decoded.pixels[:, y, x].tolist())


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000"])
def test_lossless_formats_give_their_pixels(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    decoded = decode(encoded(halves(), kind, **options), MAX_PIXELS)
    assert (decoded.width, decoded.height, decoded.fault) == (40, 20, None)
    assert decoded.pixels.dtype == torch.uint8
    assert decoded.pixels.shape == (3, 20, 40)
    assert (colour(decoded, 19, 0), colour(decoded, 20, 19)) == (RED, BLUE)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_a_jpeg_gives_the_pixels_that_pillow_sees(options):
    image = halves().resize((401, 203), Image.Resampling.BICUBIC)
    data = encoded(image, "JPEG", quality=90, **options)
    decoded = decode(data, MAX_PIXELS)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(decoded.pixels.permute(1, 2, 0).numpy() - expected).max() <= 2


def test_odd_pixel_kinds_become_rgb():
    assert colour(decode(grey_jpeg(), MAX_PIXELS), 5, 5) == (128, 128, 128)
    assert colour(decode(palette_png(), MAX_PIXELS), 0, 0) == RED  # transparent: its colour, not black
    assert colour(decode(palette_png(), MAX_PIXELS), 3, 1) == GREEN
    assert colour(decode(rgba_png(), MAX_PIXELS), 0, 0) == BLUE
    assert decode(bilevel_png(), MAX_PIXELS).pixels[0].tolist() == [[0, 255]]
    assert colour(decode(animated_gif(), MAX_PIXELS), 0, 0) == RED  # the first frame


def test_a_cmyk_jpeg_keeps_its_colour():
    red, green, blue = colour(decode(cmyk_jpeg(), MAX_PIXELS), 5, 5)
    assert red <= 3
    assert green >= 252
    assert blue >= 252


def test_sixteen_bits_are_scaled_not_clipped():
    decoded = decode(grey16_png([0, 128, 129, 257 * 100, 40_000, 65_535]), MAX_PIXELS)
    assert decoded.pixels[0].tolist() == [[0, 0, 1, 100, 156, 255]]
    assert torch.equal(decoded.pixels[0], decoded.pixels[2])


def test_a_rotated_photo_stands_upright():
    decoded = decode(oriented(halves(), "JPEG", 6, quality=95), MAX_PIXELS)  # to be turned clockwise: left comes up
    assert (decoded.width, decoded.height) == (20, 40)
    top, bottom = colour(decoded, 3, 3), colour(decoded, 3, 36)
    assert top[0] > 250 > 5 > top[2]
    assert bottom[2] > 250 > 5 > bottom[0]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(10))  # 0 and 9 are no orientations
def test_every_orientation_is_undone_as_pillow_does(kind, orientation):
    data = oriented(noise(7, 5), kind, orientation)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    decoded = decode(data, MAX_PIXELS)
    assert (decoded.width, decoded.height) == expected.size
    assert np.array_equal(decoded.pixels.permute(1, 2, 0).numpy(), np.asarray(expected))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", Fault("empty", "no bytes")),
        (b"<html>404</html>", Fault("not_an_image", "not in a known image format")),
        (b"\xff\xd8", Fault("not_an_image", "not in a known image format")),
        (b"BM is how this text begins", Fault("not_an_image", "not in a known image format")),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", Fault("not_an_image", "not in a known image format")),
        (
            b"\0\0\0\x1cftypheic" + bytes(50),
            Fault("unsupported", "no decoder for HEIC; convert it first, for example with the package pillow-heif"),
        ),
        (
            b"\xff\x0a" + bytes(50),
            Fault(
                "unsupported",
                "no decoder for JPEG XL; convert it first, for example with the package pillow-jxl-plugin",
            ),
        ),
        (twelve_bit_jpeg(), Fault("unsupported", "cannot handle 12-bit layers")),
        (
            encoded(Image.new("F", (4, 4)), "TIFF"),
            Fault("unsupported", "pixels of 32 bits (mode F) have no known range"),
        ),
    ],
)
def test_a_bad_image_is_a_fault_with_a_reason(data, expected):
    decoded = decode(data, MAX_PIXELS)
    assert (decoded.pixels, decoded.fault) == (None, expected)


def test_a_damaged_png_is_unsupported_and_its_size_known():
    decoded = decode(damaged_png(), MAX_PIXELS)
    assert (decoded.width, decoded.height, decoded.fault.status) == (8, 8, "unsupported")


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_jpeg_cut_anywhere_is_truncated(options):
    data = encoded(noise(), "JPEG", **options)
    assert status(data) is None
    assert {status(data[:length]) for length in range(3, len(data))} == {"truncated"}


def test_a_png_cut_anywhere_before_its_last_pixels_is_truncated():
    data = encoded(noise(24, 16), "PNG")
    end = data.index(b"IEND") - 4
    assert {status(data[:length]) for length in range(8, end - 8)} == {"truncated"}


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "BMP", "PPM"])
def test_other_formats_cut_in_half_are_truncated_too(kind):
    assert status(cut(encoded(noise(), kind))) == "truncated"


def test_the_size_of_a_cut_image_is_known_from_its_header():
    decoded = decode(cut(oriented(noise(64, 48), "JPEG", 6)), MAX_PIXELS)
    assert (decoded.width, decoded.height, decoded.fault.status) == (48, 64, "truncated")


def test_a_decompression_bomb_is_refused_by_its_header():
    bomb = bomb_png()
    tracemalloc.start()
    start = time.perf_counter()
    decoded = decode(bomb, MAX_PIXELS)
    seconds, (_, peak) = time.perf_counter() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (decoded.width, decoded.height) == (30_000, 30_000)
    assert decoded.fault == Fault("too_large", f"30000 x 30000 pixels are more than max_pixels, {MAX_PIXELS}")
    assert seconds < 1
    assert peak < 10 * 2**20


def test_a_side_that_no_table_holds_is_not_reported():
    decoded = decode(bomb_png(2**31 - 1, 1), MAX_PIXELS)
    assert (decoded.width, decoded.height, decoded.fault.status) == (2**31 - 1, 1, "too_large")
    for size in ((2**32 - 1, 1), (1, 2**31)):
        decoded = decode(bomb_png(*size), MAX_PIXELS)
        assert (decoded.width, decoded.height, decoded.fault.status) == (None, None, "too_large")


def test_a_jpeg_of_many_scans_is_refused_wherever_they_are():
    bomb = scan_bomb(100)
    assert decode(bomb, MAX_PIXELS).fault == Fault("unsupported", "110 scans are more than 100")
    assert status(scan_bomb(90, (64, 64))) is None
    assert status(jpeg(progressive=True) + b"\xff\xda" * 200) is None  # behind the end: a phone's film, say


def test_a_jpeg_2000_of_many_tiles_is_refused():
    assert decode(jp2_bomb(3, 250), MAX_PIXELS).fault == Fault("unsupported", "62500 tiles are more than 16384")
    assert status(encoded(noise(), "JPEG2000", tile_size=(4, 4))) is None


def test_a_bitmap_that_runs_through_millions_of_pixels_is_refused():
    assert status(rle_bmp()) is None
    assert status(rle_bmp(2**22, 2, b"\1\1\0\0" * 2)) == "too_large"


def test_an_avif_is_decoded_as_pillow_does():
    for image in (noise(40, 20), noise(41, 23).convert("RGBA"), noise(40, 20).convert("L")):
        data = encoded(image, "AVIF", quality=90)
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        decoded = decode(data, MAX_PIXELS)
        assert np.array_equal(decoded.pixels.permute(1, 2, 0).numpy(), expected)
    decoded = decode(oriented(halves(), "AVIF", 6, quality=100), MAX_PIXELS)
    assert (decoded.width, decoded.height) == (20, 40)
    assert colour(decoded, 3, 3)[0] > 240


def test_an_avif_cut_anywhere_is_truncated():
    data = encoded(noise(24, 16), "AVIF")
    assert status(data) is None
    between = (32, data.index(b"mdat") - 4)  # two boxes: what is there is whole
    assert {status(data[:length]) for length in range(33, len(data)) if length not in between} == {"truncated"}


def test_an_animated_avif_is_its_first_frame():
    frames = [Image.new("RGB", (16, 16), each) for each in (RED, BLUE)]
    decoded = decode(encoded(frames[0], "AVIF", save_all=True, append_images=frames[1:], quality=100), MAX_PIXELS)
    assert colour(decoded, 5, 5)[0] > 240


def test_an_avif_whose_stream_is_larger_than_it_says_is_refused():
    assert decode(avif_bomb(4096), MAX_PIXELS).fault == Fault(
        "too_large", f"AV1 frames of {2**24} pixels in an image of 64"
    )
    assert status(encoded(noise(40, 20), "AVIF")) is None


def test_without_avif_in_pillow_the_version_is_named(monkeypatch):
    monkeypatch.setattr(decoding.AvifImagePlugin, "SUPPORTED", False)
    expected = f"no decoder for AVIF in Pillow {PIL.__version__}; Pillow 11.3 or newer brings one"
    assert decode(encoded(noise(), "AVIF"), MAX_PIXELS).fault == Fault("unsupported", expected)


@pytest.mark.parametrize("kind", ["tEXt", "zTXt", "iTXt", "iCCP", "pHYs", "gAMA", "cHRM", "sRGB", "tIME", "prVt"])
@pytest.mark.parametrize("place", [8 + 25, -12])
def test_what_a_png_says_beside_its_pixels_refuses_no_image(kind, place):
    plain = png(8, 8, BLUE)
    megabytes = b"\xe9" * 3 * 2**20
    body = {
        "tEXt": b"Comment\0" + b"x" * 70 * 2**20,
        "zTXt": b"Comment\0\0" + zlib.compress(megabytes),
        "iTXt": b"Comment\0\1\0\0\0" + zlib.compress(megabytes),
        "iCCP": b"Profile\0\0" + zlib.compress(megabytes),
    }.get(kind, b"x")
    for chunk in (png_chunk(kind.encode(), body), png_chunk(kind.encode(), b"x")[:-1] + b"?"):
        data = plain[:place] + chunk + plain[place:]
        decoded = decode(data, MAX_PIXELS)
        assert decoded.fault is None
        assert colour(decoded, 7, 7) == BLUE


def test_max_pixels_is_the_only_limit():
    assert status(jpeg(40, 30), max_pixels=1200) is None
    assert status(jpeg(40, 30), max_pixels=1199) == "too_large"
    # Beyond Pillow's own limits of 89 million (a warning) and 179 million (an error): neither fires.
    assert status(bomb_png(10_000, 10_000), max_pixels=10**9) == "truncated"
    assert status(bomb_png(14_000, 14_000), max_pixels=10**9) == "truncated"


@pytest.mark.parametrize("data", [png(1, 1), jpeg(1, 1), png(20_000, 1), jpeg(1, 20_000)])
def test_extreme_sizes_are_images(data):
    decoded = decode(data, MAX_PIXELS)
    assert decoded.pixels.shape == (3, decoded.height, decoded.width)
    start = time.perf_counter()
    scaled = to_input_size(decoded.pixels, TransformSettings(resize=256, crop=224))
    assert time.perf_counter() - start < 2  # 4 GB in between would take longer
    assert scaled.shape == (3, 224, 224)
    assert (scaled[0] > 240).all()


def test_nothing_that_a_decoder_raises_escapes():
    known = {None, "empty", "truncated", "not_an_image", "unsupported", "too_large"}
    rng = random.Random(1)
    kinds = ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF"]
    seeds = [encoded(noise(16, 12), kind) for kind in kinds] + [oriented(noise(16, 12), "JPEG", 6)]
    for _ in range(1500):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.choice([1, 3, 20])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        decoded = decode(bytes(data[: rng.choice([len(data), rng.randrange(len(data))])]), 10**6)
        assert (decoded.fault and decoded.fault.status) in known
        assert (decoded.pixels is None) == (decoded.fault is not None)
        if decoded.fault:
            assert 0 < len(decoded.fault.error) <= 200
            assert decoded.fault.error.isprintable()


def test_an_interrupt_is_no_bad_image(monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(decoding, "_open", interrupted)
    with pytest.raises(KeyboardInterrupt):
        decode(jpeg(), MAX_PIXELS)


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        ({"resize": (20, 30)}, (3, 20, 30)),
        ({"resize": 24, "crop": 16}, (3, 16, 16)),
        ({"resize": 24, "crop": (10, 20)}, (3, 10, 20)),
        ({"crop": 32}, (3, 32, 32)),
        ({"crop": 100}, (3, 100, 100)),
    ],
)
def test_input_size(settings, shape):
    scaled = to_input_size(decode(png(64, 48), MAX_PIXELS).pixels, TransformSettings(**settings))
    assert scaled.shape == shape
    assert scaled.dtype == torch.uint8
    assert scaled.is_contiguous()


@pytest.mark.parametrize(
    ("height", "width", "resize", "crop"),
    [(6, 9, 6, (6, 9)), (6, 9, (6, 9), 6), (9, 6, (6, 9), None), (6, 9, 9, (6, 9)), (6, 6, 6, 6), (1, 90, 1, 4)],
)
def test_what_has_its_size_already_comes_out_as_from_torchvision(height, width, resize, crop):
    pixels = torch.from_numpy(np.array(noise(width, height))).permute(2, 0, 1)
    expected = functional.resize(pixels, resize, antialias=True)
    if crop is not None:
        expected = functional.center_crop(expected, crop)
    assert torch.equal(to_input_size(pixels, TransformSettings(resize=resize, crop=crop)), expected)


def test_a_crop_is_taken_from_the_centre_and_padded_with_black():
    pixels = decode(png(2, 2), MAX_PIXELS).pixels
    assert to_input_size(pixels, TransformSettings(crop=4))[0].tolist() == [
        [0, 0, 0, 0],
        [0, 255, 255, 0],
        [0, 255, 255, 0],
        [0, 0, 0, 0],
    ]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_resize_is_antialiased_as_pillows_is(interpolation):
    image = noise(90, 60)
    settings = TransformSettings(resize=(20, 30), interpolation=interpolation)
    scaled = to_input_size(torch.from_numpy(np.array(image)).permute(2, 0, 1), settings)
    expected = np.asarray(image.resize((30, 20), Image.Resampling[interpolation.upper()])).astype(int)
    assert np.abs(scaled.permute(1, 2, 0).numpy() - expected).max() <= 1


def test_nearest_keeps_the_colours_there_are():
    pixels = decode(encoded(halves(), "PNG"), MAX_PIXELS).pixels
    scaled = to_input_size(pixels, TransformSettings(resize=(7, 11), interpolation="nearest"))
    assert set(scaled.unique().tolist()) == {0, 255}


def test_a_long_strip_is_scaled_around_its_centre():
    ramp = torch.arange(3000, dtype=torch.float32).div(3000 / 255).to(torch.uint8).expand(3, 4, 3000)
    scaled = to_input_size(ramp, TransformSettings(resize=8, crop=8))
    assert scaled.unique().tolist() == [127]
