"""A picture as a person sees it: decoded, turned as its EXIF says, HEIC too.

Evaluation ignores EXIF, so that scores compare with those of other programs (`data.images`). A photograph of one's own
must stand upright instead: models were trained on upright ones, and so is what a page shows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffclip.data.images import MAX_PIXELS, BadImage, decode, opened
from diffclip.use.heic import decode_heic, is_heic

ORIENTATION = 0x0112
EXIF_WITHIN = 1 << 17  # bytes of a JPEG in which the segment with EXIF begins
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", b"II*\0", b"MM\0*")


def decode_upright(
    image: bytes | NDArray[np.uint8], max_pixels: int = MAX_PIXELS, shorter_edge: int | None = None
) -> NDArray[np.uint8]:
    """The picture as uint8 (H, W, 3), upright.

    shorter_edge: a JPEG may be decoded smaller, by a factor that TurboJPEG has, with both edges at least this long.
    Raises BadImage as `data.images.decode` and `heic.decode_heic` do.
    """
    if isinstance(image, np.ndarray):
        checked = decode(image, max_pixels)
        return checked if checked.flags.writeable else checked.copy()  # torch takes none that is not
    if is_heic(image):
        return decode_heic(image, max_pixels)  # which libheif turns itself
    return turned(decode(image, max_pixels, shorter_edge), orientation(image))


def orientation(image: bytes) -> int:
    """EXIF's number from 1 to 8: how a picture has to be turned; 1, not at all, where nothing is stated."""
    if is_jpeg_without_exif(image):
        return 1
    try:
        with opened(image) as pillow:
            number = pillow.getexif().get(ORIENTATION, 1)
    except BadImage:
        return 1
    return number if isinstance(number, int) and 1 <= number <= 8 else 1


def is_jpeg_without_exif(image: bytes) -> bool:
    """Whether a picture says nothing of itself but its size: then Pillow, which is slow to open it, is not asked."""
    return image.startswith(b"\xff\xd8") and b"Exif\0\0" not in image[:EXIF_WITHIN]


def turned(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Pixels (H, W, 3) as EXIF's orientation from 1 to 8 has them seen."""
    if orientation == 1:
        return pixels
    if orientation > 4:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def is_image(content: bytes) -> bool:
    """Whether bytes begin as an image of a kind that is read."""
    webp = content[:4] == b"RIFF" and content[8:12] == b"WEBP"
    return webp or is_heic(content) or content.startswith(_BEGINNINGS)


def of_pillow(image: Image.Image) -> NDArray[np.uint8]:
    """A Pillow image of any mode as (H, W, 3) uint8, upright. Raises BadImage."""
    from diffclip.data.images import to_rgb

    number = image.getexif().get(ORIENTATION, 1)
    return turned(to_rgb(image), number if isinstance(number, int) and 1 <= number <= 8 else 1)
