"""The pictures of an index as the page shows them: read within the index's folders alone, thumbnails kept."""

from __future__ import annotations

import io
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffclip import durable
from diffclip.data.images import MAX_BYTES, BadImage
from diffclip.reading import opened
from diffclip.search.files import inside
from diffclip.search.rows import path_of
from diffclip.search.store import Index
from diffclip.use.upright import decode_upright

THUMBNAIL, LARGE = 320, 1600
"""Pixels of the longer edge, at most."""
KEPT = 1 << 30
"""Bytes of thumbnails that stay from one start of the server to the next."""


class NotThere(Exception):
    """A picture that the index has not, whose file is gone, or which lies outside of the index's folders now."""


class Shelf:
    """The pictures of one index."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def thumbnail(self, id: str) -> bytes:
        """A JPEG of at most 320 pixels, made once for a content. Raises NotThere, BadImage."""
        row = self._row(id)
        path = _thumbnails() / row["content"][:2] / f"{row['content']}.jpg"
        with suppress(OSError):
            return path.read_bytes()
        made = as_jpeg(self._decoded(path_of(row), THUMBNAIL), THUMBNAIL, 80)
        with suppress(OSError):  # where nothing can be kept it is made again
            durable.write_bytes(path, made)
        return made

    def large(self, id: str) -> bytes:
        """A JPEG of at most 1,600 pixels, whatever the file's format. Raises NotThere, BadImage."""
        return as_jpeg(self._decoded(path_of(self._row(id)), LARGE), LARGE, 88)

    def pixels(self, id: str) -> NDArray[np.uint8]:
        """(H, W, 3) uint8, upright. Raises NotThere, BadImage."""
        return self._decoded(path_of(self._row(id)), None)

    def _row(self, id: str) -> dict[str, str]:
        row = self._index.rows([id], ["path", "raw", "content"]).get(id)
        if row is None:
            raise NotThere(id)
        return row

    def _decoded(self, path: str, shown: int | None) -> NDArray[np.uint8]:
        return decode_upright(read_within(path, self._index.about.folders), shorter_edge=shown)


def read_within(path: str, folders: tuple[str, ...]) -> bytes:
    """The bytes of a file that really lies in one of some folders, given as real paths: links do not lead out.

    Raises NotThere; BadImage where it is too large.
    """
    real = os.path.realpath(path)
    if not any(inside(real, folder) for folder in folders):
        raise NotThere(path)
    try:
        with opened(real) as file:
            # A link that has been put into its way since: on Linux the open file says where it lies.
            there = f"/proc/self/fd/{file.fileno()}"
            if os.path.exists(there) and os.path.realpath(there) != real:
                raise NotThere(path)
            content = file.read(MAX_BYTES + 1)
    except OSError:
        raise NotThere(path) from None
    if len(content) > MAX_BYTES:
        raise BadImage("too_many_bytes")
    return content


def as_jpeg(pixels: NDArray[np.uint8], edge: int, quality: int) -> bytes:
    """(H, W, 3) uint8 as a JPEG whose longer edge is at most `edge`."""
    image = Image.fromarray(pixels)
    image.thumbnail((edge, edge), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _thumbnails() -> Path:
    return durable.cache_folder() / "thumbnails"


def prune(most: int = KEPT) -> None:
    """Delete the thumbnails that were made first, until at most so many bytes are left."""
    folder = _thumbnails()
    files: list[tuple[float, int, Path]] = []
    for path in folder.glob("*/*.jpg"):
        with suppress(OSError):
            status = path.stat()
            files.append((status.st_mtime, status.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= most:
            break
        with suppress(OSError):
            path.unlink()
            total -= size
