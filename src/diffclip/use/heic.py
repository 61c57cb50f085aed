"""HEIC, in which telephones take photographs, by pillow-heif: the extra `heic`."""

from __future__ import annotations

import importlib.util

import numpy as np
from numpy.typing import NDArray

from diffclip.data.images import MAX_PIXELS, BadImage

SUFFIXES = (".heic", ".heif", ".hif")
BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
"""What comes behind "ftyp" in such a file."""


def is_heic(image: bytes) -> bool:
    """Whether bytes begin as a HEIC file does."""
    return image[4:8] == b"ftyp" and image[8:12] in BRANDS


def available() -> bool:
    """Whether the extra is installed."""
    return importlib.util.find_spec("pillow_heif") is not None


def decode_heic(image: bytes, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """The first image of a file as (H, W, 3) uint8, turned upright as the file says.

    Raises BadImage: "needs_heic_extra" where pillow-heif is not installed, "too_many_pixels", "damaged".
    """
    if not available():
        raise BadImage("needs_heic_extra")
    import pillow_heif

    try:
        file = pillow_heif.open_heif(image, convert_hdr_to_8bit=True)
        width, height = file.size
        if width * height > max_pixels:
            raise BadImage("too_many_pixels")
        return np.array(file.to_pillow().convert("RGB"))
    except BadImage:
        raise
    except Exception as error:  # of libheif's dozen kinds
        raise BadImage("damaged") from error


def exif_of(image: bytes) -> bytes:
    """The EXIF block of a file, empty where it has none or the extra is not installed."""
    if not available():
        return b""
    import pillow_heif

    try:
        return bytes(pillow_heif.open_heif(image).info.get("exif") or b"")
    except Exception:  # of libheif's dozen kinds: the pixels tell what is wrong
        return b""
