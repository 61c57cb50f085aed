"""Small pictures as files, for the commands that use a model."""

import io

import numpy as np
from PIL import Image

import diffclip
from small_models import small_model


def picture(seed=0, size=(24, 18)):
    """A picture of coloured noise, so that no two are alike: Pillow's, width × height."""
    generator = np.random.default_rng(seed)
    blocks = generator.integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def with_exif(image, *, orientation=1, taken=None, camera=("", "")):
    """A JPEG with EXIF: orientation, the date "YYYY:MM:DD HH:MM:SS", maker and model of the camera."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F], exif[0x0110] = camera
    if taken:
        exif.get_ifd(0x8769)[0x9003] = taken
    return encoded(image, "JPEG", exif=exif, quality=95)


def model_folder(folder, kind="diffclip", seed=0):
    diffclip.save(small_model(kind, seed), folder)
    return str(folder)
