"""What the server holds while it runs: indexes, their models, features of texts and of uploaded pictures."""

from __future__ import annotations

import os
import secrets
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffclip.data.images import BadImage
from diffclip.errors import UserError
from diffclip.search.query import Filters, Hit, Part, check_text, find, stored_vector, vector_of
from diffclip.search.store import Index
from diffclip.server.looks import Seen, seen
from diffclip.server.shelf import Shelf
from diffclip.text import model_labels
from diffclip.use.classify import Classifier, checked_labels
from diffclip.use.encoder import Encoder, Features
from diffclip.use.upright import decode_upright

UPLOADS, TEXTS = 64, 4096
"""How many uploaded pictures and texts are remembered."""
UPLOAD_PIXELS = 1 << 25
"""Of an uploaded picture, 33 million."""
MOST_LABELS = 200


@dataclass
class Desk:
    """One index with its model. The model computes for one request at a time."""

    name: str
    index: Index
    encoder: Encoder
    shelf: Shelf
    lock: threading.Lock


class Room:
    """All that requests share. Its methods may be called from any thread."""

    def __init__(self, indexes: Sequence[Index], encoders: Sequence[Encoder]) -> None:
        names = model_labels([encoder.source for encoder in encoders])
        self.desks = [
            Desk(name, index, encoder, Shelf(index), threading.Lock())
            for name, index, encoder in zip(names, indexes, encoders, strict=True)
        ]
        self._texts: OrderedDict[tuple[int, str], Features] = OrderedDict()
        self._uploads: OrderedDict[str, NDArray[np.uint8]] = OrderedDict()
        self._memory = threading.Lock()

    def desk(self, number: int) -> Desk:
        """Raises UserError."""
        if not 0 <= number < len(self.desks):
            raise UserError("there is no such index")
        return self.desks[number]

    def upload(self, image: bytes) -> str:
        """Remember a picture; its name. Raises BadImage."""
        pixels = decode_upright(image, UPLOAD_PIXELS, shorter_edge=1024)
        name = secrets.token_urlsafe(12)
        with self._memory:
            self._uploads[name] = pixels
            while len(self._uploads) > UPLOADS:
                self._uploads.popitem(last=False)
        return name

    def search(
        self, desk: int, parts: Sequence[tuple[str, str, float]], count: int, offset: int, filters: Filters
    ) -> list[Hit]:
        """parts: kind ("text", "picture" of the index, "upload"), text or name, weight. Raises UserError."""
        at = self.desk(desk)
        whats = [Part(self._feature(desk, kind, what), weight) for kind, what, weight in parts if weight]
        return find(at.index, vector_of(at.encoder, whats), count, offset, filters)

    def look(self, desk: int, id: str, text: str) -> list[tuple[str, Seen]]:
        """Every model's look at a picture of an index. Raises UserError, NotThere, BadImage."""
        check_text(text)
        picture = self.desk(desk).shelf.pixels(id)
        found = []
        for at in self.desks:
            with at.lock:
                found.append((at.name, seen(at.encoder.model, picture, text)))
        return found

    def labels(self, desk: int, id: str, labels: Sequence[str]) -> list[tuple[str, list[tuple[str, float]]]]:
        """Each model's probabilities of labels, in their order. Raises UserError, NotThere, BadImage."""
        chosen = checked_labels(labels)
        if len(chosen) > MOST_LABELS:
            raise UserError(f"{len(chosen)} labels: give at most {MOST_LABELS}")
        for label in chosen:
            check_text(label)
        picture = self.desk(desk).shelf.pixels(id)
        found = []
        for at in self.desks:
            with at.lock:
                classifier = Classifier(at.encoder, chosen)
                probabilities, _ = classifier.scores(at.encoder.images([at.encoder.pixels(picture)]))
            found.append((at.name, list(zip(chosen, probabilities[0].tolist(), strict=True))))
        return found

    def folders(self) -> list[str]:
        """Of all indexes."""
        return sorted({folder for desk in self.desks for folder in desk.index.about.folders})

    def _feature(self, desk: int, kind: str, what: str) -> Features:
        at = self.desks[desk]
        if kind == "text":
            check_text(what)
            return self._text(desk, what)
        if kind == "picture":
            vector = stored_vector(at.index, what)
            if vector is None:
                raise UserError("that picture is no longer in the index")
            unit: Features = (vector / np.linalg.norm(vector)).astype(np.float32)
            return unit
        with self._memory:
            pixels = self._uploads.get(what)
        if pixels is None:
            raise UserError("that picture is forgotten: drop it again")
        try:
            with at.lock:
                feature: Features = at.encoder.images([at.encoder.pixels(pixels)])[0]
        except BadImage as error:  # of a shape that no image has
            raise UserError(f"that picture cannot be used: {error.reason}") from None
        return feature

    def _text(self, desk: int, text: str) -> Features:
        key = (desk, text)
        with self._memory:
            if key in self._texts:
                self._texts.move_to_end(key)
                return self._texts[key]
        with self.desks[desk].lock:
            feature: Features = self.desks[desk].encoder.texts([text])[0]
        with self._memory:
            self._texts[key] = feature
            while len(self._texts) > TEXTS:
                self._texts.popitem(last=False)
        return feature


def short(path: str, folders: Sequence[str]) -> str:
    """A path as the page shows it: below its folder, with the folder's own name."""
    for folder in folders:
        if path.startswith(os.path.join(folder, "")):
            return os.path.join(os.path.basename(folder), os.path.relpath(path, folder))
    return path
