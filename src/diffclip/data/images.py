"""Decode an image of unknown origin to 8-bit RGB, or say in one word why it cannot be used.

Images that are not plain RGB:

- Transparency (RGBA, grey with alpha, palettes with a transparent entry) is composited on white: the colour
  behind transparent pixels is arbitrary, and nearly all such drawings were made for white pages.
- 16 bits a channel are scaled to 8 (65535 becomes 255), not clipped.
- Of an animation, the first frame is used.
- The EXIF orientation is ignored, as open_clip and torchvision's default loader do, so that scores compare.

JPEG in its usual colours is decoded by TurboJPEG, to the same bits as by Pillow and in three quarters of its time.
It refuses whatever it would have to warn of. Pillow decodes that, and everything else.
"""

from __future__ import annotations

import errno
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from diffclip.errors import UserError
from diffclip.reading import read_bytes

MAX_PIXELS = 1 << 26  # 67 million: 192 MiB decoded
MAX_BYTES = 1 << 28  # of a file
MAX_SCANS = 100  # of a JPEG; each may cost a pass over all pixels, and progressive files have about ten
# Only formats that Pillow decodes by itself: its PostScript reader, for one, would start another program.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
REASONS = (
    "empty",
    "too_many_bytes",
    "not_an_image",
    "too_many_pixels",
    "truncated",
    "damaged",
    "unsupported_mode",
    "wrong_shape",
)


class BadImage(Exception):
    """An example that cannot be used. `reason` is a short stable word, counted by the loader."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def decode(
    image: bytes | NDArray[np.uint8], max_pixels: int = MAX_PIXELS, shorter_edge: int | None = None
) -> NDArray[np.uint8]:
    """The image as a writable uint8 array (H, W, 3), RGB. An array is only checked and handed back.

    shorter_edge: a plain JPEG may be decoded smaller, by a factor that TurboJPEG has, while both edges stay at least
    this long. A photograph of twelve megapixels then takes a fifth of the time.

    The number of pixels is read from the header, before anything is decoded. It may never be larger than
    `max_pixels`, nor than Pillow's own limit, `PIL.Image.MAX_IMAGE_PIXELS`.

    Raises:
        BadImage: with one of `REASONS`; never anything else, whatever the bytes are.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise BadImage("wrong_shape")
        return image
    _check_bytes(image)
    plain = _plain_jpeg(image, max_pixels, shorter_edge)
    if plain is not None:
        return plain
    with opened(image, max_pixels) as pillow:
        return to_rgb(pillow)


def _check_bytes(image: bytes) -> None:
    if not image:
        raise BadImage("empty")
    if len(image) > MAX_BYTES:
        raise BadImage("too_many_bytes")
    # Where these two bytes are not the start of a scan, they lie in a thumbnail or a profile: a few at most.
    if image.startswith(b"\xff\xd8") and image.count(b"\xff\xda") > MAX_SCANS:
        raise BadImage("damaged")


@contextmanager
def opened(image: bytes, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """An image as Pillow reads it, for what is to see more than `decode` gives: the only door to Pillow's readers.

    The block may load its pixels. Raises BadImage as `decode` does, also for what Pillow raises in the block.
    """
    _check_bytes(image)
    # Pillow warns of large images and of small faults in files. The first is an error here, the second is
    # noise.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(image), formats=FORMATS) as pillow:
                if pillow.width * pillow.height > max_pixels:
                    raise BadImage("too_many_pixels")
                yield pillow
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            raise BadImage("too_many_pixels") from None
        except UnidentifiedImageError:
            raise BadImage("not_an_image") from None
        except BadImage:
            raise
        except Exception as error:  # on broken files Pillow's readers raise errors of a dozen types
            raise BadImage("truncated" if "truncated" in str(error).lower() else "damaged") from error


def _plain_jpeg(image: bytes, max_pixels: int, shorter_edge: int | None) -> NDArray[np.uint8] | None:
    """A JPEG without faults, in YCbCr, RGB or grey; None for everything else, and for too many pixels."""
    if not image.startswith(b"\xff\xd8\xff"):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(image)
        if colours not in ("YCbCr", "RGB", "Gray") or height * width > min(
            max_pixels, Image.MAX_IMAGE_PIXELS or max_pixels
        ):
            return None
        least = shorter_edge if shorter_edge is not None and shorter_edge < min(height, width) else 0  # 0: as it is
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(image, min_height=least, min_width=least)
    except ValueError:
        return None
    return pixels


def read_image(path: str | Path) -> bytes:
    """The bytes of an image file, undecoded. Names come from tables: what is no regular file is not opened.

    Raises:
        BadImage: "missing" or "too_many_bytes".
    """
    try:
        return read_bytes(path, MAX_BYTES)
    except OSError as error:
        raise BadImage("too_many_bytes" if error.errno == errno.EFBIG else "missing") from None


def to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """A Pillow image of any mode as a writable uint8 array (H, W, 3), converted as is said above.

    Raises:
        BadImage: "unsupported_mode"; and whatever Pillow raises when it reads the pixels of a broken file.
    """
    image.load()
    if image.mode.startswith("I"):
        return _deep_grey_to_rgb(np.asarray(image))
    if image.mode in ("F", "LAB"):  # floats have no white to scale to; Pillow has no way from LAB to RGB
        raise BadImage("unsupported_mode")
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    if image.mode != "RGB":
        image = image.convert("RGB")
    return np.array(image)


def _deep_grey_to_rgb(grey: NDArray[np.generic]) -> NDArray[np.uint8]:
    """16-bit grey, which some versions of Pillow hand over as 32-bit integers."""
    wide = grey.astype(np.int64)
    if wide.min() < 0 or wide.max() > 65535:
        raise BadImage("unsupported_mode")
    scaled = ((wide * 255 + 32767) // 65535).astype(np.uint8)
    return np.repeat(scaled[:, :, None], 3, axis=2)


def decode_file(path: str | Path) -> NDArray[np.uint8]:
    """An image file that a person named, (H, W, 3) uint8 RGB. Raises UserError for what is none."""
    try:
        return decode(read_bytes(path, MAX_BYTES))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except BadImage as error:
        raise UserError(f"{path} cannot be used as an image: {error.reason.replace('_', ' ')}") from None
