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


def make_album(place):
    """Six pictures in two folders, hidden and broken files, leftovers."""
    folder = place / "it's an album"
    for name in ("sea", "hills/high"):
        (folder / name).mkdir(parents=True)
    (folder / "sea/a.png").write_bytes(encoded(picture(1)))
    (folder / "sea/b.png").write_bytes(encoded(picture(2, (64, 48))))
    phone = {"orientation": 6, "taken": "2023:07:01 10:00:00", "camera": ("Apple", "iPhone 12")}
    (folder / "sea/c.jpg").write_bytes(with_exif(picture(3, (40, 30)), **phone))
    canon = {"taken": "2024:02:29 23:59:59", "camera": ("Canon", "Canon EOS R5")}
    (folder / "hills/d.jpg").write_bytes(with_exif(picture(4, (40, 30)), **canon))
    (folder / "hills/high/e.png").write_bytes(encoded(picture(5)))
    (folder / "hills/high/é ü.webp").write_bytes(encoded(picture(6), "WEBP", lossless=True))
    (folder / "sea/.hidden.png").write_bytes(encoded(picture(7)))
    (folder / "sea/._a.png").write_bytes(b"a resource fork")
    (folder / "sea/notes.txt").write_text("no picture")
    (folder / "@eaDir").mkdir()
    (folder / "@eaDir/thumb.jpg").write_bytes(encoded(picture(8), "JPEG"))
    (folder / "hills/broken.jpg").write_bytes(encoded(picture(9), "JPEG")[:300])
    return folder
