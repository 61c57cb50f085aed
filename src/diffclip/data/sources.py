"""Open a data set, whatever its format: random access to images with captions or labels."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal, Protocol, get_args, runtime_checkable
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray

from diffclip.data.columns import listed
from diffclip.data.example import Example, Options
from diffclip.data.files import FolderSource, table_source
from diffclip.data.options import Format
from diffclip.data.parquet import ParquetSource
from diffclip.data.patterns import expand_braces
from diffclip.data.shards import TarSource
from diffclip.data.stamp import Stamped, stamp_of
from diffclip.data.stream import is_stream
from diffclip.errors import UserError

__all__ = ["Example", "Source", "captions_of", "open_source", "place_of", "splits_of"]

FORMATS: tuple[str, ...] = get_args(Format)
TEMPLATES = ("a photo of a {c}.",)
_FORMAT_OF = {".tar": "tar", ".parquet": "parquet", ".csv": "csv", ".tsv": "csv"}
_SPLIT = re.compile(r"(train|training|test|testing|val|valid|validation|dev)(?=[-_.\d]|$)", re.IGNORECASE)
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
) -> Source:
    """The data set at `path`.

    `path` is a file, a folder, a pattern of files (`*`, `?`, `[…]`, `{a,b}`, `{00000..00099}`), or the
    embedded data set: `scenes`, `scenes:<split>`, `scenes:<split>?size=64&length=2000&seed=0`. `split`
    chooses among files named `<split>-*` and folders named `<split>`. A fixed random choice of `holdout`
    examples is what `part="holdout"` gives and `part="train"` leaves out. In `templates`, `{c}` stands for
    the class name.

    Raises:
        UserError: whatever is wrong with the path or with what was found there.
    """
    if format not in FORMATS:
        raise UserError(f"unknown data format {format!r}: choose one of {', '.join(FORMATS)}")
    if is_stream(path):
        raise UserError(f"{path} is a stream, good for training alone: fetch the files for evaluation and all else")
    for template in templates or ():
        check_template(template)
    source: Source
    if format == "scenes" or (format == "auto" and re.fullmatch(r"scenes([:?].*)?", path)):
        source = _scenes(path, split)
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
        )
        source = _open_files(path, format, split, options)
        if source.classnames and not source.templates:
            source.templates = TEMPLATES
        for template in source.templates or ():
            check_template(template)
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


def _scenes(path: str, split: str | None) -> Source:
    from diffclip.data.scenes import SceneSource  # only where it is asked for

    stated, _, query = path.partition("?")
    _, _, stated_split = stated.partition(":")
    arguments: dict[str, int] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in ("size", "length", "seed") or not re.fullmatch(r"\d{1,9}", value):
            raise UserError(f"{path}: {key}={value} is not size=…, length=… or seed=… with a whole number below 10⁹")
        arguments[key] = int(value)
    return SceneSource(split=stated_split or split or "train", **arguments)


def _open_files(path: str, format: str, split: str | None, options: Options) -> Source:
    root = Path(path)
    files = _data_files(root, format) if os.path.isdir(root) else _matching(path)
    if not files or format == "folder":
        if format not in ("auto", "folder"):
            raise UserError(f"{path} holds no {format} files, neither itself nor one folder down")
        if not os.path.isdir(root):
            raise UserError(f"{path} is not a folder of class folders")
        return FolderSource(_split_folder(root, split), options)
    if format == "auto":
        format = _FORMAT_OF.get(files[0].suffix.lower(), "")
        if not format:
            raise UserError(f"{files[0]} is of no known format: expected {', '.join(_FORMAT_OF)} or a folder")
    files = _of_split(files, root, split) if os.path.isdir(root) or split else files
    if format == "tar":
        return TarSource(files, options)
    return ParquetSource(files, options) if format == "parquet" else table_source(files, options)


def _matching(path: str) -> list[Path]:
    """The files that a path or pattern names, sorted within each alternative of its braces."""
    files: list[Path] = []
    for name in expand_braces(path):
        found = sorted(glob.glob(name)) if glob.has_magic(name) and not os.path.exists(name) else [name]
        files += [Path(file) for file in found]
        missing = next((file for file in found if not os.path.isfile(file)), None)
        if missing is not None or not found:
            where = Path(missing or name)
            around = sorted(entry.name for entry in where.parent.iterdir())[:8] if os.path.isdir(where.parent) else []
            raise UserError(f"there is no {where}; {where.parent} has {listed(around)}")
    return files


def _data_files(root: Path, format: str) -> list[Path]:
    """The files of one format in a folder, or one folder down if it has none itself.

    Tar shards come first: beside them img2dataset leaves a parquet table of the same examples without their
    images.
    """
    wanted = [f for f in ("tar", "parquet", "csv") if format in ("auto", f)]
    for pattern in ("*", "*/*"):
        here = sorted(file for file in root.glob(pattern) if file.suffix.lower() in _FORMAT_OF and file.is_file())
        for kind in wanted:
            files = [file for file in here if _FORMAT_OF[file.suffix.lower()] == kind and file.name[0] != "."]
            if files:
                return files
    return []


def splits_of(folder: Path) -> tuple[str, ...]:
    """The names of the splits into which a folder is divided, as its files or its class folders are; () for none."""
    files = _data_files(folder, "auto")
    if files:
        return tuple(sorted({name for file in files if (name := _split_name(file, folder))}))
    return tuple(name for name in _folders(folder) if _SPLIT.fullmatch(name))


def _folders(root: Path) -> list[str]:
    return sorted(entry.name for entry in root.iterdir() if entry.is_dir() and entry.name[0] != ".")


def _split_name(file: Path, root: Path) -> str | None:
    """What the file's folder or the beginning of its name calls the split it belongs to, if anything."""
    if file.parent != root and _SPLIT.fullmatch(file.parent.name):
        return file.parent.name
    match = _SPLIT.match(file.name)
    return match[1] if match else None


def _of_split(files: list[Path], root: Path, split: str | None) -> list[Path]:
    names = {file: _split_name(file, root) for file in files}
    known = sorted({name for name in names.values() if name})
    if split is None:
        if len(known) > 1:
            raise UserError(f"{root} holds the splits {listed(known)}: choose one with split")
        return files
    chosen = [f for f in files if f.parent.name == split or re.match(re.escape(split) + r"([-_.]|$)", f.name)]
    if not chosen:
        raise UserError(
            f"{root} holds no split {split!r}; found {listed(known or sorted({f.name for f in files})[:8])}"
        )
    return chosen


def _split_folder(root: Path, split: str | None) -> Path:
    folders = _folders(root)
    if split is not None:
        if split not in folders:
            raise UserError(f"{root} holds no split {split!r}; its folders are {listed(folders[:8])}")
        return root / split
    splits = [name for name in folders if _SPLIT.fullmatch(name)]
    if splits and len(splits) == len(folders):
        if len(splits) > 1:
            raise UserError(f"{root} holds the splits {listed(splits)}: choose one with split")
        return root / splits[0]
    return root
