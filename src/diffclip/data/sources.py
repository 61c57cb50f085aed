"""Open a data set, whatever its format: random access to images with captions or labels."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal, Protocol, get_args, runtime_checkable
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray

from diffclip.data.classes import NO_CLASSES, check_names, check_same_classes
from diffclip.data.example import Example, Options
from diffclip.data.formats.class_folders import FolderSource
from diffclip.data.formats.files import table_source
from diffclip.data.formats.parquet import ParquetSource
from diffclip.data.formats.paths import (
    ANYTHING,
    FORMAT_OF,
    contents,
    data_files,
    matching,
    of_split,
    split_folder,
    splits_of,
)
from diffclip.data.formats.shards import TarSource
from diffclip.data.formats.stamp import Stamped, stamp_of
from diffclip.data.formats.stream import check_scheme, is_stream
from diffclip.data.options import Format
from diffclip.errors import UserError

__all__ = ["Example", "Source", "captions_of", "open_source", "place_of", "splits_of"]

log = logging.getLogger(__name__)

FORMATS: tuple[str, ...] = get_args(Format)
KEYS = ("image_key", "caption_key", "label_key")
SCENES = ("size", "length", "seed")
TEMPLATES = ("a photo of a {c}.",)
_HOLDOUT_SEED = 20_250_309


class Source(Protocol):
    """A list of examples. `classnames` and `templates` make captions for those that have only a label.

    Reading an example raises `images.BadImage` where the example's file is missing or its label unreadable.
    Sources can be pickled and are safe to fork.
    """

    name: str
    classnames: tuple[str, ...] | None
    templates: tuple[str, ...] | None

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


@runtime_checkable
class Placed(Protocol):
    """A source that can say where an example lies. Every source of files of this package can."""

    def place(self, index: int) -> str:
        """The file, and where in it."""
        ...


def place_of(source: Source, index: int) -> str:
    """Where an example lies, for a person to find it."""
    return source.place(index) if isinstance(source, Placed) else f"example {index} of {source.name}"


def captions_of(source: Source, example: Example) -> tuple[str, ...]:
    """The example's own captions, or its class name in every template; () for an example that has neither.

    Raises:
        UserError: the class has no name.
    """
    if example.captions or example.label is None:
        return example.captions
    if source.classnames is None:
        raise UserError(f"{source.name} has labels but no class names to make captions of: give classnames")
    if example.label >= len(source.classnames):
        raise UserError(f"{source.name} has the label {example.label}, but only {len(source.classnames)} class names")
    return _prompts(source.classnames[example.label], source.templates or TEMPLATES)


@lru_cache(maxsize=1 << 16)
def _prompts(classname: str, templates: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(template.replace("{c}", classname) for template in templates)


def open_source(
    path: str,
    *,
    format: str = "auto",
    split: str | None = None,
    image_key: str | None = None,
    caption_key: str | None = None,
    label_key: str | None = None,
    classnames: Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
    holdout: int = 0,
    part: Literal["all", "train", "holdout"] = "all",
    allow_outside: bool = False,
) -> Source:
    """The data set at `path`.

    `path` is a file, a folder, a pattern of files (`*`, `?`, `[…]`, `{a,b}`, `{00000..00099}`), or the
    embedded data set: `scenes`, `scenes:<split>`, `scenes:<split>?size=64&length=2000&seed=0`. `split`
    chooses among files named `<split>-*` and folders named `<split>`. A fixed random choice of `holdout`
    examples is what `part="holdout"` gives and `part="train"` leaves out. In `templates`, `{c}` stands for
    the class name. A table may name images outside of its own folder with `allow_outside` alone.

    Raises:
        UserError: whatever is wrong with the path or with what was found there.
    """
    if format not in FORMATS:
        raise UserError(f"unknown data format {format!r}: choose one of {', '.join(FORMATS)}")
    if not path:
        raise UserError(f"no path: give {ANYTHING}")
    if is_stream(path):
        raise UserError(f"{path} is a stream, good for training alone: fetch the files for evaluation and all else")
    check_scheme(path)
    for template in templates or ():
        check_template(template)
    source: Source
    if format == "scenes" or (format == "auto" and re.fullmatch(r"scenes([:?].*)?", path)):
        source = _scenes(path, split, {"image_key": image_key, "caption_key": caption_key, "label_key": label_key})
        source.classnames = tuple(classnames) if classnames else source.classnames
        source.templates = tuple(templates) if templates else source.templates
    else:
        path = os.path.expanduser(path)
        root = Path(path)
        options = Options(
            f"{(root if os.path.exists(root) else root.parent).resolve().name}{f':{split}' if split else ''}",
            image_key,
            caption_key,
            label_key,
            tuple(classnames) if classnames else None,
            tuple(templates) if templates else None,
            allow_outside,
        )
        source = _open_files(path, format, split, options)
        if source.classnames and not source.templates:
            source.templates = TEMPLATES
        for template in source.templates or ():
            check_template(template)
    own = source.folders if isinstance(source, FolderSource) else getattr(source, "own_names", ())
    check_names(source.name, source.classnames or (), own, classnames)
    if part == "all" or (part == "train" and holdout == 0):
        return source
    if not 0 < holdout < len(source):
        raise UserError(f"holdout must be between 1 and {len(source) - 1} for {source.name}, not {holdout}")
    order = np.random.default_rng(_HOLDOUT_SEED).permutation(len(source))
    return Subset(source, np.sort(order[:holdout] if part == "holdout" else order[holdout:]), part)


class Subset:
    """Some examples of a source, in the order of `indices`."""

    def __init__(self, source: Source, indices: NDArray[np.int64], part: str) -> None:
        self.name = f"{source.name} ({part})"
        self.classnames, self.templates = source.classnames, source.templates
        self._source, self._indices = source, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        return self._source[int(self._indices[index])]

    def place(self, index: int) -> str:
        return place_of(self._source, int(self._indices[index]))

    def stamp(self) -> str:
        inner = self._source.stamp() if isinstance(self._source, Stamped) else self._source.name
        return stamp_of([], inner, self._indices.tolist())


def check_template(template: str) -> None:
    """Raises UserError where a template has other fields than `{c}`, or none."""
    rest = template.replace("{c}", "")
    if rest == template or "{" in rest or "}" in rest:
        raise UserError(f"template {template!r} must have {{c}} where the class name goes, and no other braces")


def _scenes(path: str, split: str | None, keys: Mapping[str, str | None]) -> Source:
    from diffclip.data.scenes import SceneSource

    _refuse(path, keys, "drawn scenes have")
    stated, _, query = path.partition("?")
    name, _, stated_split = stated.partition(":")
    if name != "scenes":
        raise UserError(
            f"{path}: drawn scenes are called scenes:SPLIT, such as scenes:test; for files leave format out"
        )
    if split and stated_split not in ("", split):
        raise UserError(f"{path} names the split {stated_split!r}, but split = {split!r}: leave one of them out")
    arguments: dict[str, int] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in SCENES or not re.fullmatch(r"\d{1,9}", value):
            wrong = f"{key}={value}" if value else key
            raise UserError(
                f"{path}: after the ? come {', '.join(f'{name}=…' for name in SCENES)} with whole numbers below 10⁹, "
                f"separated by &, not {wrong}"
            )
        arguments[key] = int(value)
    return SceneSource(split=stated_split or split or "train", **arguments)


def _open_files(path: str, format: str, split: str | None, options: Options) -> Source:
    root = Path(path)
    keys = {name: getattr(options, name) for name in KEYS}
    files = data_files(root, format) if os.path.isdir(root) else matching(path)
    if not files or format == "folder":
        if format not in ("auto", "folder"):
            raise UserError(f"{path} holds no {format} files, neither itself nor one folder down; {contents(root)}")
        if not os.path.isdir(root):
            raise UserError(f"{path} is a file, not a folder of class folders; leave format out")
        _refuse(path, keys, "class folders have")
        return _class_folders(root, split, options)
    if format == "auto":
        format = FORMAT_OF.get(files[0].suffix.lower(), "")
        if not format:
            raise UserError(
                f"{files[0]} is of no known format: give a file that ends in {', '.join(FORMAT_OF)}, a folder of these "
                "or of class folders, or say what it is with format"
            )
    files = of_split(files, root, split) if os.path.isdir(root) or split else files
    if format == "tar":
        return TarSource(files, options)
    return ParquetSource(files, options) if format == "parquet" else table_source(files, options)


def _class_folders(root: Path, split: str | None, options: Options) -> FolderSource:
    """Class folders of a split. Raises UserError where they are no classes, or others than those of another split."""
    folder = split_folder(root, split)
    source = FolderSource(folder, options)
    if folder != root:
        check_same_classes(source.folders, folder, [root / other for other in splits_of(root)])
    if len(source.folders) == 1 and source.folders[0].lower() in NO_CLASSES:
        raise UserError(
            f"{folder} holds images in one folder, {source.folders[0]}, which is no class: make a folder for each "
            "class, or name the images with their labels or captions in a .csv file"
        )
    return source


def _refuse(path: str, keys: Mapping[str, str | None], having: str) -> None:
    """Raises UserError for a key that is stated where it would mean nothing."""
    for name, value in keys.items():
        if value is not None:
            raise UserError(f"{path}: {having} no {name} to choose: leave {name} {value!r} out")
