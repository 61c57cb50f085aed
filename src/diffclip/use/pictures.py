"""The pictures that a command names: files, folders, patterns, shards, tables, scenes, standard input."""

from __future__ import annotations

import glob
import logging
import os
import sys
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from diffclip.data.example import Example
from diffclip.data.formats.paths import FORMAT_OF, contents, data_files, images_below, matching
from diffclip.data.formats.stamp import Stamped, stamp_of
from diffclip.data.images import MAX_BYTES, BadImage, read_image
from diffclip.data.sources import Source, open_source, place_of
from diffclip.errors import UserError
from diffclip.use.heic import SUFFIXES as HEIC_SUFFIXES
from diffclip.use.upright import is_image

log = logging.getLogger(__name__)

STDIN = "-"


class Files:
    """Image files, in the order given: a source of examples without captions or labels."""

    classnames: tuple[str, ...] | None = None
    templates: tuple[str, ...] | None = None

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = paths
        self.name = paths[0] if len(paths) == 1 else f"{len(paths):,} files"

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Example:
        return Example(read_image(self.paths[index]))

    def place(self, index: int) -> str:
        return self.paths[index]

    def stamp(self) -> str:
        return stamp_of(self.paths)


class OneImage:
    """One image that has no file: what came by standard input."""

    classnames: tuple[str, ...] | None = None
    templates: tuple[str, ...] | None = None
    name: str = STDIN

    def __init__(self, image: bytes) -> None:
        self._image = image

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Example:
        return Example((self._image,)[index])

    def place(self, index: int) -> str:
        return STDIN

    def stamp(self) -> str:
        return stamp_of([], self._image)


class Pictures:
    """The examples of some sources, one source after the other: itself a source, each example with a name."""

    classnames: tuple[str, ...] | None = None
    templates: tuple[str, ...] | None = None

    def __init__(self, sources: Iterable[Source]) -> None:
        self._sources = list(sources)
        self._ends: list[int] = []
        for source in self._sources:
            self._ends.append((self._ends[-1] if self._ends else 0) + len(source))
        self.name = ", ".join(source.name for source in self._sources)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Example:
        source, own = self._home(index)
        return source[own]

    def place(self, index: int) -> str:
        """The picture's name: a path, or the file it lies in and where in it."""
        return place_of(*self._home(index))

    def stamp(self) -> str:
        return stamp_of([], *(s.stamp() if isinstance(s, Stamped) else s.name for s in self._sources))

    def _home(self, index: int) -> tuple[Source, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect_right(self._ends, index)
        return self._sources[number], index - (self._ends[number - 1] if number else 0)


def open_pictures(arguments: Sequence[str]) -> Pictures:
    """The pictures of some arguments, in their order.

    arguments: image files; folders, whose images below them count, or where there are none its shards and tables;
    patterns of any of these; tar, parquet, CSV and TSV files; `scenes:SPLIT`; and "-", standard input: one image, or
    paths, one a line, or with a null byte behind each.
    Raises UserError for what is not there, and for a folder without images.
    """
    sources: list[Source] = []
    files: list[str] = []
    for argument in arguments:
        for found in _from_stdin() if argument == STDIN else _sources_of(argument):
            if isinstance(found, str):
                files.append(found)
                continue
            if files:
                sources.append(Files(files))
                files = []
            sources.append(found)
    if files:
        sources.append(Files(files))
    pictures = Pictures(sources)
    if not len(pictures):
        raise UserError("no pictures: give image files, folders, shards, or - for standard input")
    return pictures


def _sources_of(argument: str) -> list[str | Source]:
    """Paths of image files, and the sources of anything else, that an argument stands for."""
    if argument.startswith("scenes") and not os.path.exists(argument):
        return [open_source(argument)]
    path = os.path.expanduser(argument)
    if os.path.isdir(path):
        return _in_folder(path)
    if glob.has_magic(path) and not os.path.exists(path):
        folders = sorted(name for name in glob.glob(path) if os.path.isdir(name))
        if folders:
            return [found for name in sorted(glob.glob(path)) for found in _sources_of(name)]
    return [found for file in matching(path) for found in _of_file(str(file))]


def _of_file(path: str) -> list[str | Source]:
    return [open_source(path)] if Path(path).suffix.lower() in FORMAT_OF else [path]


def _in_folder(folder: str) -> list[str | Source]:
    others: Counter[str] = Counter()
    images = images_below(Path(folder), others, HEIC_SUFFIXES)
    if images:
        if tables := others[".tar"] + others[".parquet"]:
            log.warning("%s: its images are read; its %d tar and parquet files are not: name them too", folder, tables)
        return list(images)
    if data_files(Path(folder), "auto"):
        return [open_source(folder)]
    raise UserError(f"no images in {folder}, nor in folders below it: {contents(Path(folder))}")


def _from_stdin() -> list[str | Source]:
    content = sys.stdin.buffer.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise UserError(f"standard input has more than {MAX_BYTES:,} bytes: give files")
    if is_image(content):
        return [OneImage(content)]
    separator = b"\0" if b"\0" in content else b"\n"
    names = [os.fsdecode(line.rstrip(b"\r")) for line in content.split(separator) if line.strip()]
    if not names:
        raise UserError("nothing came by standard input: an image, or paths of images, one a line")
    return [found for name in names for found in _of_file(name)]


def read(source: Source, index: int) -> Example:
    """An example of a source. Raises BadImage alone, also for what a broken table says of one example."""
    try:
        return source[index]
    except UserError:
        raise BadImage("missing") from None
