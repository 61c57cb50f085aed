"""Labelled images in files of their own, one folder a class."""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path

import numpy as np

from diffclip.data.example import Example, Options
from diffclip.data.formats.packed_paths import PackedPaths
from diffclip.data.formats.paths import SHOWN, SUFFIXES, contents, entries, images_below
from diffclip.data.formats.stamp import stamp_of
from diffclip.data.images import read_image
from diffclip.errors import UserError
from diffclip.text import listed

log = logging.getLogger(__name__)


class FolderSource:
    """Labelled images, one folder a class. Underscores in a folder's name are spaces in the class name."""

    def __init__(self, folder: Path, options: Options) -> None:
        self.name, self.templates = options.name, options.templates
        classes = [entry for entry in entries(folder) if entry.is_dir()]
        others: Counter[str] = Counter()
        self._files = PackedPaths()
        counts = [self._files.extend(images_below(entry, others)) for entry in classes]
        empty = [entry.name for entry, count in zip(classes, counts, strict=True) if not count]
        if empty and len(empty) < len(classes):
            log.warning("%s: no images in %s: not classes", folder, listed(empty[:SHOWN]) + " …" * (len(empty) > SHOWN))
        classes = [entry for entry, count in zip(classes, counts, strict=True) if count]
        counts = list(filter(None, counts))
        if not classes:
            raise _no_images(folder)
        if others:
            most = sorted(others.items(), key=lambda kind: (-kind[1], kind[0]))[:SHOWN]
            kinds = listed(f"{count:,} {suffix or 'without an ending'}" for suffix, count in most)
            log.warning("%s: files are left out that are no images by their names: %s", folder, kinds)
        self.folders = tuple(entry.name for entry in classes)
        """The name of each class's folder, in the order of the labels."""
        names = options.classnames or tuple(_words(name) for name in self.folders)
        self.classnames: tuple[str, ...] | None = names
        if len(names) != len(classes):
            raise UserError(f"{folder} has {len(classes)} class folders, but {len(names)} class names are given")
        self.labels = np.repeat(np.arange(len(counts)), counts)
        """(N,) int64: the number of each image's class."""

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Example:
        """Raises BadImage("missing") if the file has gone."""
        return Example(read_image(self._files[index]), label=int(self.labels[index]))

    def place(self, index: int) -> str:
        return self._files[index]

    def stamp(self) -> str:
        return stamp_of(self._files)


def _words(name: str) -> str:
    """A folder's name as a class name, which is text: bytes that are no UTF-8 are written out."""
    return os.fsencode(name).decode(errors="backslashreplace").replace("_", " ")


def _no_images(folder: Path) -> UserError:
    loose = sum(entry.suffix.lower() in SUFFIXES for entry in entries(folder))
    if loose:
        return UserError(
            f"{folder} holds {loose:,} images in no class folder: move them into a folder for each class, or name them "
            "with their captions in a .csv file with the columns filepath and caption"
        )
    return UserError(
        f"{folder} holds no parquet, tar, csv or tsv files and no class folders of images; {contents(folder)}"
    )
