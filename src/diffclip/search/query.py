"""Questions to an index: texts and pictures with weights, and conditions on folder, date, camera and size."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from diffclip.data.images import BadImage, read_image
from diffclip.errors import UserError
from diffclip.search.rows import instant, path_of, quoted, shown
from diffclip.search.store import Index

if TYPE_CHECKING:  # it imports torch, which conditions and duplicates do without
    from diffclip.use.encoder import Encoder, Features

LONGEST = 2000
"""Characters of a text that is looked for; models read some seventy words."""
COLUMNS = ["id", "path", "raw", "taken", "camera", "width", "height"]
PROBES, REFINE = 180, 4
"""Of the vector index, where there is one: `benchmarks/search.py --tune` prints recall and time of others."""


@dataclass(frozen=True)
class Hit:
    """A picture that was found."""

    id: str
    path: str
    score: float
    """The cosine of picture and query."""
    taken: datetime | None
    camera: str | None
    width: int | None
    height: int | None


@dataclass(frozen=True)
class Filters:
    """What a picture has to be; None asks nothing."""

    folder: str | None = None
    since: datetime | None = None
    """Taken at this time or later. Pictures that do not say when are left out, as by `until`."""
    until: datetime | None = None
    """Taken before this time."""
    camera: str | None = None
    """Part of the camera's name, in any case."""
    min_width: int | None = None
    min_height: int | None = None

    def condition(self) -> str | None:
        """For LanceDB, in SQL; None where all pictures are asked for."""
        parts: list[str] = []
        if self.folder is not None:
            start = os.path.join(shown(os.path.realpath(os.path.expanduser(self.folder))), "")
            parts.append(f"starts_with(path, {quoted(start)})")
        if self.since is not None:
            parts.append(f"taken >= {instant(self.since)}")
        if self.until is not None:
            parts.append(f"taken < {instant(self.until)}")
        if self.camera is not None:
            parts.append(f"contains(lower(camera), {quoted(self.camera.lower())})")
        if self.min_width is not None:
            parts.append(f"width >= {int(self.min_width)}")
        if self.min_height is not None:
            parts.append(f"height >= {int(self.min_height)}")
        return " AND ".join(parts) or None


@dataclass(frozen=True)
class Part:
    """One of several things that are looked for together: a text or a picture's feature, with a weight."""

    what: str | Features
    weight: float = 1.0


def vector_of(encoder: Encoder, parts: Sequence[Part]) -> Features:
    """What is looked for, (embed_dim,): Σ weight · feature, normalised; weights below 0 lead away.

    Raises UserError for no part, an empty or endless text, a weight that is no number, and a sum of nothing.
    """
    if not parts:
        raise UserError("nothing to look for: give a text or a picture")
    texts = [part.what for part in parts if isinstance(part.what, str)]
    for text in texts:
        check_text(text)
    if not all(np.isfinite(part.weight) for part in parts):
        raise UserError("a weight must be a number")
    encoded = iter(encoder.texts(texts)) if texts else iter(())
    features = np.stack([next(encoded) if isinstance(part.what, str) else part.what for part in parts])
    total = (features.astype(np.float64) * np.array([[part.weight] for part in parts])).sum(0)
    length = float(np.linalg.norm(total))
    if length < 1e-6:
        raise UserError("the parts of the query cancel each other out: change their weights")
    vector: Features = (total / length).astype(np.float32)
    return vector


def check_text(text: str) -> None:
    """Raises UserError for a text that says nothing, or far more than a model reads."""
    if not text.strip():
        raise UserError("an empty text finds nothing: say what to look for")
    if len(text) > LONGEST:
        raise UserError(f"a query of {len(text):,} characters: give at most {LONGEST:,}; models read some 70 words")


def picture_feature(encoder: Encoder, path: str) -> Features:
    """Of an image file that need not be in the index. Raises UserError where it cannot be read."""
    try:
        feature: Features = encoder.images([encoder.pixels(read_image(path))])[0]
        return feature
    except BadImage as error:
        raise UserError(f"{path} cannot be used as an image: {error.reason.replace('_', ' ')}") from None


def find(index: Index, vector: Features, count: int, offset: int = 0, filters: Filters | None = None) -> list[Hit]:
    """The pictures nearest to a vector, the nearest first, from the `offset`-th on.

    Up to `store.EXACT` pictures, and where a filter leaves few, every one is compared. Raises UserError for a count
    below 1.
    """
    if count < 1 or offset < 0:
        raise UserError(f"give at least 1 picture, from 0 on, not {count} from {offset}")
    query = index.pictures.search(vector).distance_type("cosine").refine_factor(REFINE)
    condition = (filters or Filters()).condition()
    if condition is None:
        query = query.nprobes(PROBES)
    else:  # 0: as many more as it takes where these hold too few
        query = query.minimum_nprobes(PROBES).maximum_nprobes(0).where(condition, prefilter=True)
    rows = query.select([*COLUMNS, "_distance"]).limit(count + offset).to_arrow().to_pylist()
    return [_hit(row, 1 - row["_distance"]) for row in rows[offset:]]


def stored_vector(index: Index, id: str) -> NDArray[np.floating[Any]] | None:
    """The vector of a picture of the index, float32; None where it has none of this id."""
    row = index.rows([id], ["vector"]).get(id)
    return None if row is None else np.asarray(row["vector"], np.float32)


def _hit(row: dict[str, Any], score: float) -> Hit:
    return Hit(row["id"], path_of(row), score, row["taken"], row["camera"], row["width"], row["height"])
