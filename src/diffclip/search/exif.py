"""What a photograph says of itself: when it was taken, by which camera, and how large it is, upright."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import simplejpeg
from PIL import Image

from diffclip.data.images import BadImage, opened
from diffclip.use.heic import exif_of, is_heic
from diffclip.use.upright import ORIENTATION, is_jpeg_without_exif

MAKER, MODEL, CHANGED = 0x010F, 0x0110, 0x0132
DETAILS, TAKEN, DIGITISED = 0x8769, 0x9003, 0x9004
LONGEST = 80
"""Characters of a camera's name."""


@dataclass(frozen=True)
class Facts:
    """Of a photograph; None where it does not say."""

    width: int | None = None
    height: int | None = None
    taken: datetime | None = None
    """By the camera's clock, whose time zone it does not say."""
    camera: str | None = None


def facts_of(image: bytes) -> Facts:
    """What a picture as it is stored says. Never raises: a broken block of EXIF says nothing."""
    try:
        if is_heic(image):
            return _of_heic(image)
        if is_jpeg_without_exif(image):
            with suppress(ValueError):  # of a header that Pillow may understand
                height, width = simplejpeg.decode_jpeg_header(image)[:2]
                return Facts(width, height)
        with opened(image) as pillow:
            width, height = pillow.size
            exif = pillow.getexif()
            if exif.get(ORIENTATION) in (5, 6, 7, 8):
                width, height = height, width
            return Facts(width, height, _taken(exif), _camera(exif))
    except BadImage:
        return Facts()


def _of_heic(image: bytes) -> Facts:
    import pillow_heif

    try:
        width, height = pillow_heif.open_heif(image).size
        exif = Image.Exif()
        exif.load(exif_of(image))
        return Facts(width, height, _taken(exif), _camera(exif))
    except Exception:  # of libheif's and Pillow's dozen kinds
        return Facts()


def _taken(exif: Image.Exif) -> datetime | None:
    details = exif.get_ifd(DETAILS)
    for stated in (details.get(TAKEN), details.get(DIGITISED), exif.get(CHANGED)):
        match = re.match(r"(\d{4})\D(\d{2})\D(\d{2})\D(\d{2})\D(\d{2})\D(\d{2})", str(stated or ""))
        if match:
            try:
                return datetime(*map(int, match.groups()))  # type: ignore[arg-type]
            except ValueError:  # month 0, as cameras write whose clock was never set
                continue
    return None


def _camera(exif: Image.Exif) -> str | None:
    maker, model = (_text(exif.get(tag)) for tag in (MAKER, MODEL))
    if maker and model.lower().startswith(maker.split()[0].lower()):
        maker = ""
    return f"{maker} {model}".strip()[:LONGEST] or None


def _text(value: Any) -> str:
    return " ".join(str(value or "").replace("\0", " ").split())
