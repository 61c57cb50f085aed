"""Which column of a table holds the image, the captions, the labels; and what its values mean."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from diffclip.errors import UserError
from diffclip.text import closest, listed

IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo", "image_bytes", "bytes")
PATHS = ("filepath", "path", "image_path", "image", "img", "file_name", "filename", "file", "filepaths")
CAPTIONS = ("caption", "captions", "text", "txt", "title", "alt_text", "sentence", "sentences", "description")
MASKS = ("mask", "mask_path", "mask_file")
LABELS = ("label", "labels", "class", "cls", "target", "category", "fine_label")


def find(wanted: str | None, usual: Sequence[str], available: Sequence[str], where: str) -> str | None:
    """The wanted column, or else the first usual one that there is, in upper or lower case.

    Raises:
        UserError: the wanted column does not exist.
    """
    if wanted is None:
        by_lower = {name.lower(): name for name in available}
        return next((by_lower[name] for name in usual if name in by_lower), None)
    if wanted not in available:
        raise UserError(f"{where} has no column {wanted!r}; it has {listed(available)}{closest(wanted, available)}")
    return wanted


def nothing_to_learn(where: str, what: str, available: Iterable[str]) -> UserError:
    """The error for a table or shard in which neither captions nor labels were recognised."""
    return UserError(
        f"{where}: neither captions nor labels recognised among its {what} ({listed(available)}); "
        "name one with caption_key or label_key"
    )


def captions(value: str | list[str] | None) -> tuple[str, ...]:
    """The captions in one cell, without the empty ones."""
    values = [value] if isinstance(value, str) else value or []
    return tuple(text for text in values if text and text.strip())


class Labels:
    """A label column as class numbers: integers stay, names are numbered in the order of `classnames`.

    `classnames` are those given, or the names found in the column, sorted, or None where it holds integers.
    A missing or negative label is None.
    """

    def __init__(self, column: pa.ChunkedArray, classnames: tuple[str, ...] | None, where: str) -> None:
        self.classnames = classnames
        try:
            if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):  # pandas' for integers with gaps
                self._numbers = pc.fill_null(column.cast(pa.int64()), -1).to_numpy()
            else:
                self._numbers = self._numbered(column.cast(pa.string()).to_pylist(), where)
        except (pa.ArrowException, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())[:120]
            raise UserError(
                f"{where}: labels of type {column.type} are neither whole numbers nor names: {reason}"
            ) from None
        highest = self._numbers.max(initial=-1)
        if self.classnames and highest >= len(self.classnames):
            raise UserError(f"{where} has labels up to {highest}, but there are {len(self.classnames)} class names")

    def _numbered(self, names: list[str | None], where: str) -> NDArray[np.int64]:
        distinct = sorted({name for name in names if name})
        if all(re.fullmatch(r"-?\d{1,18}", name, re.ASCII) for name in distinct):
            number = {name: int(name) for name in distinct}
        else:
            self.classnames = self.classnames or tuple(distinct)
            number = {name: i for i, name in enumerate(self.classnames)}
            unknown = [name for name in distinct if name not in number]
            if unknown:
                raise UserError(f"{where}: the label {unknown[0]!r} is not among the {len(number)} class names given")
        return np.array([number.get(name, -1) if name else -1 for name in names], dtype=np.int64)

    def __getitem__(self, row: int) -> int | None:
        number = int(self._numbers[row])
        return number if number >= 0 else None


def how_to_state(key: str) -> str:
    """A key as a person may state it: in a recipe and in `diffclip data` by its name, in `eval` behind the path."""
    return f"{key}, in `eval` as PATH?{key}=NAME"
