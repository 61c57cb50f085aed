"""Whatever bytes there are: an RGB array as expected, or one word that says why not."""

import io
import struct
import warnings
import zlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffclip.data import images
from diffclip.data.images import REASONS, BadImage, decode

RNG = np.random.default_rng(0)
SMOOTH = np.stack(np.meshgrid(np.linspace(0, 255, 24), np.linspace(0, 255, 16)), -1).astype(np.uint8)
SMOOTH = np.concatenate([SMOOTH, np.full((16, 24, 1), 90, np.uint8)], -1)  # (16, 24, 3)


def encoded(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def reason(data, **options):
    with pytest.raises(BadImage) as caught:
        decode(data, **options)
    assert caught.value.reason in REASONS
    return caught.value.reason


def image_or_reason(data):
    try:
        image = decode(data, max_pixels=1 << 16)
    except BadImage as bad:
        return bad.reason in REASONS
    return image.dtype == np.uint8 and image.shape[2] == 3


@pytest.mark.parametrize(("format", "tolerance"), [("PNG", 0), ("BMP", 0), ("TIFF", 0), ("JPEG", 12), ("WEBP", 20)])
def test_formats(format, tolerance):
    image = decode(encoded(Image.fromarray(SMOOTH), format))
    assert image.dtype == np.uint8
    assert image.flags.writeable
    assert image.shape == SMOOTH.shape
    assert np.abs(image.astype(int) - SMOOTH).max() <= tolerance


def test_an_array_is_handed_back_if_it_is_rgb():
    assert decode(SMOOTH) is SMOOTH
    for wrong in (
        SMOOTH[..., 0],
        SMOOTH.astype(float),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
    ):
        assert reason(wrong) == "wrong_shape"


def test_grey_is_repeated():
    image = decode(encoded(Image.fromarray(SMOOTH[..., 0])))
    assert (image == SMOOTH[..., :1]).all()
    assert set(np.unique(decode(encoded(Image.fromarray(SMOOTH[..., 0] > 99))))) == {0, 255}


def test_cmyk_is_converted():
    ink = np.zeros((8, 8, 4), np.uint8)
    ink[..., 0] = 255  # all cyan
    for format in ("JPEG", "TIFF"):
        image = decode(encoded(Image.fromarray(ink, "CMYK"), format))
        assert np.abs(image.astype(int) - [0, 255, 255]).max() < 8


def png(width, height, bits, colour, raw):
    """A PNG of a kind that Pillow cannot write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def test_sixteen_bits_are_scaled_not_clipped():
    deep = np.array([[0, 128, 257, 300], [1000, 32768, 65407, 65535]], np.uint16)
    expected = np.round(deep / 65535 * 255)
    by_pillow = encoded(Image.fromarray(deep))
    by_hand = png(4, 2, 16, 0, b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep))
    big_endian_tiff = b"MM\0*" + encoded(Image.fromarray(deep), "TIFF")[4:]
    for data in (by_pillow, by_hand, encoded(Image.fromarray(deep), "TIFF")):
        assert (decode(data) == expected[..., None]).all()
    assert reason(big_endian_tiff) in REASONS
    rgb = np.repeat(deep[..., None], 3, -1)
    colour = decode(png(4, 2, 16, 2, b"".join(b"\0" + row.astype(">u2").tobytes() for row in rgb)))
    assert np.abs(colour - expected[..., None]).max() <= 1


def test_integers_and_floats_without_a_range_are_refused():
    assert reason(encoded(Image.fromarray(np.full((4, 4), 70_000, np.int32)), "TIFF")) == "unsupported_mode"
    assert reason(encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")) == "unsupported_mode"


def test_transparency_shows_white():
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[..., 0], rgba[..., 3] = 200, 51  # a fifth of (200, 0, 0) on white
    assert (decode(encoded(Image.fromarray(rgba))) == [244, 204, 204]).all()

    palette = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4) % 2).convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    assert {tuple(c) for c in decode(encoded(palette)).reshape(-1, 3)} == {(10, 20, 30), (40, 50, 60)}
    for format in ("PNG", "GIF"):
        image = decode(encoded(palette, format, transparency=1))
        assert {tuple(c) for c in image.reshape(-1, 3)} == {(10, 20, 30), (255, 255, 255)}

    keyed = Image.new("RGB", (4, 4), (1, 2, 3))
    assert (decode(encoded(keyed, transparency=(1, 2, 3))) == 255).all()
    grey = Image.fromarray(np.full((4, 4, 2), [0, 0], np.uint8), "LA")
    assert (decode(encoded(grey)) == 255).all()


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame(format):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    image = decode(encoded(frames[0], format, save_all=True, append_images=frames[1:], **options))
    assert (image == [255, 0, 0]).all()


def test_the_exif_orientation_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encoded(Image.fromarray(SMOOTH), "JPEG", exif=exif)).shape == SMOOTH.shape


def test_one_pixel_wide():
    assert decode(encoded(Image.new("RGB", (1, 3000)), "JPEG")).shape == (3000, 1, 3)


def test_what_is_no_image():
    assert reason(b"") == "empty"
    assert reason(b"<html>404</html>") == "not_an_image"
    assert reason(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n") == "not_an_image"


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_beginning_of_a_file(format):
    noise = Image.fromarray(RNG.integers(0, 256, (24, 24, 3), dtype=np.uint8))
    data = encoded(noise, format)
    reasons = set()
    for length in range(1, len(data) - 8, 7):
        try:
            decode(data[:length])
        except BadImage as bad:
            reasons.add(bad.reason)
    assert "not_an_image" in reasons
    assert reasons & {"truncated", "damaged"} or format in (
        "WEBP",
        "TIFF",
    )  # there the header names the length
    assert reason(data[: len(data) // 2]) in ("truncated", "damaged", "not_an_image")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_damage_anywhere_is_an_image_or_a_reason(format, data):
    original = bytearray(encoded(Image.fromarray(SMOOTH), format))
    for _ in range(data.draw(st.integers(1, 8))):
        original[data.draw(st.integers(0, len(original) - 1))] = data.draw(st.integers(0, 255))
    assert image_or_reason(bytes(original))


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0"]),
)
def test_any_bytes(data, start):
    assert image_or_reason(start + data)


def test_too_many_pixels_are_refused_before_they_are_decoded():
    data = encoded(Image.new("1", (300, 200)))
    assert reason(data, max_pixels=59_999) == "too_many_pixels"
    assert decode(data, max_pixels=60_000).shape == (200, 300, 3)
    # Pillow warns from 89 million pixels and refuses from 179 million: both are the same to us, and silent.
    # These files hold no pixels at all, so whatever looked for them would say "truncated".
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for side in (8193, 12_000, 60_000):
            assert reason(png(side, side, 1, 0, b"")) == "too_many_pixels"
            assert reason(png(side, side, 1, 0, b""), max_pixels=1 << 40) in (
                "too_many_pixels",
                "truncated",
                "damaged",
            )


def by_pillow(data, monkeypatch):
    """What Pillow alone makes of it, or the reason why not."""
    with monkeypatch.context() as patch:
        patch.setattr(images, "_plain_jpeg", lambda *_: None)
        try:
            return decode(data)
        except BadImage as bad:
            return bad.reason


JPEGS = [
    encoded(Image.fromarray(pixels).convert(mode), "JPEG", progressive=progressive, subsampling=subsampling, **options)
    for pixels in (np.tile(SMOOTH, (3, 3, 1)), RNG.integers(0, 256, (50, 70, 3), dtype=np.uint8))
    for mode, options in (("RGB", {}), ("L", {}), ("RGB", {"restart_marker_rows": 1}), ("CMYK", {}))
    for progressive in (False, True)
    for subsampling in ("4:4:4", "4:2:2", "4:2:0")
]


def test_turbojpeg_gives_the_bits_that_pillow_gives(monkeypatch):
    """Also for damaged files, of which it takes those alone in which nothing is wrong as far as it can see."""
    taken = Counter()
    for data in JPEGS:
        assert np.array_equal(decode(data), by_pillow(data, monkeypatch))
        taken["whole"] += images._plain_jpeg(data, 1 << 20, None) is not None
        for _ in range(20):
            damaged = bytearray(data)
            damaged[RNG.integers(len(data))] = RNG.integers(256)
            pixels = images._plain_jpeg(bytes(damaged), 1 << 20, None)
            taken["damaged"] += pixels is not None
            assert pixels is None or np.array_equal(pixels, by_pillow(bytes(damaged), monkeypatch))
    assert taken["whole"] == len(JPEGS) * 3 // 4  # all but CMYK
    assert taken["damaged"] > 20


def test_a_jpeg_that_was_cut_short_is_never_half_grey():
    """TurboJPEG would fill up what is missing; it is not asked to."""
    for data in JPEGS:
        for length in RNG.integers(3, len(data) - 20, 10):
            assert reason(data[:length]) in ("truncated", "damaged", "not_an_image")


def test_pillows_own_limit_holds_for_every_format(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 48 * 72 - 1)
    for format in ("JPEG", "PNG", "WEBP"):
        assert reason(encoded(Image.new("RGB", (72, 48)), format)) == "too_many_pixels"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert decode(encoded(Image.new("RGB", (72, 48)), "JPEG")).shape == (48, 72, 3)
    assert reason(encoded(Image.new("RGB", (72, 48)), "JPEG"), max_pixels=48 * 72 - 1) == "too_many_pixels"
