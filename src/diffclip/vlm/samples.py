"""What is learned from: an image or none, and a conversation about it, by LLaVA's JSON or drawn."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from diffclip.data.formats.stamp import stamp_of
from diffclip.data.formats.tar import members, read
from diffclip.data.images import MAX_BYTES, read_image
from diffclip.errors import UserError
from diffclip.reading import parse_json, read_text
from diffclip.vlm.conversation import Turn
from diffclip.vlm.language import IMAGE

LARGEST = 1 << 31  # bytes of a JSON of conversations: LLaVA's mix of 665k has 1 GB


class BadSample(Exception):
    """A conversation that cannot be learned from; `reason` is one word or two."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Symbol:
    """Words in place of a part of an image."""

    x: float
    """Where it stands: a fraction of the side to the right."""
    y: float
    """And downwards."""
    words: str
    amount: float
    """How much of their embeddings is there."""


@dataclass(frozen=True)
class Sample:
    """A conversation, about an image or none."""

    id: str
    image: bytes | NDArray[np.uint8] | None
    turns: tuple[Turn, ...]
    symbols: tuple[Symbol, ...] = ()
    """In place of an image."""


class Samples(Protocol):
    """A list of samples. Reading one raises `BadSample`, or `images.BadImage` where its image is missing."""

    name: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def id_of(self, index: int) -> str:
        """What a person finds the sample by, whether it can be read or not."""

    def stamp(self) -> str:
        """See `data.formats.stamp.Stamped`."""


class LlavaJson:
    """Conversations as LLaVA keeps them: [{"id", "image", "conversations": [{"from", "value"}, …]}, …].

    images: the folder, or the tar archive, in which the images lie that the rows name. A row without an image is a
    conversation in text alone.
    """

    def __init__(self, path: Path, images: Path | None) -> None:
        self.name, self._path = path.name, path
        try:
            rows = parse_json(read_text(path, "utf-8-sig", most=LARGEST))
        except (OSError, UnicodeDecodeError, ValueError) as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:120]
            raise UserError(f"{path} cannot be read as LLaVA's JSON: {reason}") from None
        if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
            raise UserError(f"{path}: expected a list of objects with id, image and conversations")
        if any("image" in row for row in rows) and images is None:
            raise UserError(f"{path} names images: say in which folder or tar archive they lie, with images")
        self._rows: list[dict[str, Any]] = rows
        self._folder = None if images is None or images.is_file() else images
        self._archive = images if images is not None and images.is_file() else None
        self._members = {m.name: (m.offset, m.size) for m in members(self._archive)[0]} if self._archive else {}
        if images is not None and not images.exists():
            raise UserError(f"{images}: there is no such folder or archive of images")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        row = self._rows[index]
        name = row.get("image")
        if isinstance(name, list):
            if len(name) > 1:
                raise BadSample("several_images")
            name = name[0] if name else None
        turns = _turns(row.get("conversations"), with_image=name is not None)
        return Sample(self.id_of(index), None if name is None else self._image(str(name)), turns)

    def id_of(self, index: int) -> str:
        return str(self._rows[index].get("id", index))

    def stamp(self) -> str:
        return stamp_of([self._path, *filter(None, (self._folder, self._archive))])

    def _image(self, name: str) -> bytes:
        if self._archive is not None:
            span = self._members.get(name) or self._members.get(f"./{name}")
            if span is None or span[1] > MAX_BYTES:
                raise BadSample("missing" if span is None else "too_many_bytes")
            return read(self._archive, [span])[0]
        assert self._folder is not None
        place = (self._folder / name).resolve()
        if not place.is_relative_to(self._folder.resolve()):  # a file from anywhere is not to choose among all files
            raise BadSample("outside")
        return read_image(place)


def _turns(conversations: Any, *, with_image: bool) -> tuple[Turn, ...]:
    """Pairs of a question and its answer. The image's token, wherever it stands, is put before the first by itself."""
    if not isinstance(conversations, list) or not all(
        isinstance(said, dict) and isinstance(said.get("value"), str) for said in conversations
    ):
        raise BadSample("no_conversation")
    texts = [said["value"] for said in conversations]
    if sum(text.count(IMAGE) for text in texts) > 1:
        raise BadSample("several_images")
    if not with_image and any(IMAGE in text for text in texts):
        raise BadSample("no_image_named")
    said_by = [said.get("from") for said in conversations]
    if len(texts) < 2 or len(texts) % 2 or said_by != ["human", "gpt"] * (len(texts) // 2):
        raise BadSample("turns_out_of_order")
    clean = [text.replace(IMAGE, "").strip() for text in texts]
    if not all(clean[1::2]):
        raise BadSample("empty_answer")
    return tuple(Turn(question, answer) for question, answer in zip(clean[::2], clean[1::2], strict=True))


def in_words(reasons: Counter[str]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
