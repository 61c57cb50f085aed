"""What a source gives, as one digest: the same wherever its files lie, whenever they were written."""

import hashlib
import json
from collections.abc import Iterable, Iterator

import numpy as np

from diffclip.data.images import BadImage
from diffclip.data.sources import Source


def content_digest(source: Source, indices: Iterable[int] | None = None) -> str:
    """A digest of the examples at `indices`, or of all: images as they are stored, captions, labels.

    The same examples have the same digest wherever they lie and in whatever format. Nothing is decoded: it takes the
    time of reading the files.
    """
    digest = hashlib.sha256()
    for content in _contents(source, range(len(source)) if indices is None else indices):
        digest.update(len(content).to_bytes(8, "big"))
        digest.update(content)
    return digest.hexdigest()


def _contents(source: Source, indices: Iterable[int]) -> Iterator[bytes | memoryview]:
    for index in indices:
        try:
            example = source[index]
        except BadImage as error:
            yield f"unreadable: {error.reason}".encode()
            continue
        image = example.image
        yield image if isinstance(image, bytes) else np.ascontiguousarray(image).reshape(-1).data
        shape = None if isinstance(image, bytes) else image.shape
        yield json.dumps([shape, example.captions, example.label]).encode()
