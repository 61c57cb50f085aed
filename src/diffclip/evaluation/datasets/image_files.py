"""Images in files of their own, with the labels or captions that something beside them states."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffclip.data.example import Example
from diffclip.data.formats.stamp import stamp_of
from diffclip.data.images import read_image


class ImageFiles:
    """Images in files of their own, with labels or captions. Raises BadImage("missing") for one that is not there."""

    templates: tuple[str, ...] | None = None

    def __init__(
        self,
        name: str,
        paths: Sequence[Path],
        *,
        labels: Sequence[int] | None = None,
        classnames: tuple[str, ...] | None = None,
        captions: Sequence[tuple[str, ...]] | None = None,
    ) -> None:
        self.name, self.classnames = name, classnames
        self._paths, self._labels, self._captions = [str(path) for path in paths], labels, captions

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Example:
        image = read_image(self._paths[index])
        return Example(
            image,
            self._captions[index] if self._captions else (),
            self._labels[index] if self._labels else None,
        )

    def place(self, index: int) -> str:
        return self._paths[index]

    def stamp(self) -> str:
        return stamp_of(self._paths, self._labels, self._captions)
