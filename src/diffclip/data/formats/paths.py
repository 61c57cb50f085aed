"""Which files a path names, and to which split each belongs."""

from __future__ import annotations

import glob
import math
import os
import re
from collections import Counter
from collections.abc import Iterable
from itertools import product
from pathlib import Path

from diffclip.errors import UserError
from diffclip.text import closest, listed

FORMAT_OF = {".tar": "tar", ".parquet": "parquet", ".csv": "csv", ".tsv": "csv"}
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")  # of images
LEFTOVERS = ("thumbs.db", "desktop.ini")  # of systems, beside hidden ones
ANYTHING = "a folder, a file, a pattern of shards, or scenes:SPLIT"
MOST_FILES = 1 << 20  # that a pattern may stand for
LEFTOVERS = ("thumbs.db", "desktop.ini")  # of systems, beside hidden ones
SHOWN = 8  # of what a folder has instead of what was looked for
_SPLIT = re.compile(r"(train|training|test|testing|val|valid|validation|dev)(?=[-_.\d]|$)", re.IGNORECASE)


def matching(path: str) -> list[Path]:
    """The files that a path or pattern names, sorted within each alternative of its braces.

    Raises:
        UserError: one of them is not there, or nothing fits the pattern.
    """
    files: list[Path] = []
    for name in expand_braces(path):
        pattern = glob.has_magic(name) and not os.path.exists(name)
        found = sorted(glob.glob(name)) if pattern else [name]
        files += [Path(file) for file in found]
        missing = next((file for file in found if not os.path.isfile(file)), None)
        if missing is not None or not found:
            raise UserError(_not_there(missing or name))
    return files


def inside_of(folder: Path, name: str, where: str) -> str:
    """Where a file lies that is named in a folder by another file, `where`.

    Links are followed, as the folder's owner made them; `..` leads back along the name, not along a link. Raises
    UserError for a file outside of the folder: who writes a table is not to choose among all files of this machine.
    """
    path = os.path.normpath(os.path.join(folder, name))
    root = os.path.normpath(folder)
    if os.path.isabs(name):
        root = os.path.abspath(folder)
    if path.startswith(("..", "/")) if root == "." else not path.startswith(os.path.join(root, "")):
        raise UserError(
            f"{where} names {name}, which lies outside of {folder}: give --allow-outside, in a recipe "
            "allow_outside = true, in a sweep PATH?allow_outside=true, if it may choose among all files of this machine"
        )
    return path


def expand_braces(pattern: str) -> list[str]:
    """`{a,b}` and `{000..012}` as the shell expands them; other braces stay."""
    parts = re.split(r"(\{[^{}]*\})", pattern)
    choices: list[list[str]] = []
    for part in parts:
        inner = part[1:-1]
        numbers = re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", inner, re.ASCII)
        if part.startswith("{") and numbers:
            first, last = numbers.groups()
            if int(last) - int(first) >= MOST_FILES:
                raise UserError(f"{pattern[:200]} stands for {int(last) - int(first) + 1:,} files")
            choices.append([f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)])
        else:
            choices.append(inner.split(",") if part.startswith("{") and "," in inner else [part])
    if math.prod(map(len, choices)) > MOST_FILES:
        raise UserError(f"{pattern[:200]} stands for more than {MOST_FILES:,} files")
    return ["".join(choice) for choice in product(*choices)]


def _not_there(name: str) -> str:
    """For a message about a missing file: what its folder has."""
    path = Path(os.path.abspath(name))
    folder = next(parent for parent in path.parents if os.path.isdir(parent))
    names = [entry.name for entry in entries(folder)]
    meant = closest(path.relative_to(folder).parts[0], names)
    if closest(re.split("[:/?]", name)[0].lower(), ["scenes"]):
        meant = "; is it scenes:SPLIT, such as scenes:test?"
    has = f"has {_some(names)}" if names else "is empty"
    return (
        f"there is no {name}: {folder} {has}{meant or '; give a folder, a file, a pattern of shards, or scenes:SPLIT'}"
    )


def _some(names: Iterable[str]) -> str:
    every = list(names)
    return listed(every[:SHOWN]) + (f" and {len(every) - SHOWN:,} more" if len(every) > SHOWN else "")


def entries(folder: Path) -> list[Path]:
    """What is in a folder, hidden files apart, sorted. Raises UserError where it may not be read."""
    try:
        return sorted(entry for entry in folder.iterdir() if entry.name[0] != ".")
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror}") from None


def contents(folder: Path) -> str:
    """What a folder has, for a message that says that this is not what was expected."""
    names = [entry.name for entry in entries(folder)]
    return f"it has {_some(names)}" if names else "it is empty"


def data_files(root: Path, format: str) -> list[Path]:
    """The files of one format in a folder, or one folder down if it has none itself.

    Tar shards come first: beside them img2dataset leaves a parquet table of the same examples without their
    images.
    """
    wanted = [f for f in ("tar", "parquet", "csv") if format in ("auto", f)]
    for pattern in ("*", "*/*"):
        here = sorted(file for file in root.glob(pattern) if file.suffix.lower() in FORMAT_OF and file.is_file())
        for kind in wanted:
            files = [file for file in here if FORMAT_OF[file.suffix.lower()] == kind and file.name[0] != "."]
            if files and not (kind == "csv" and pattern == "*/*" and _lie_in_classes(files, root)):
                return files
    return []


def _lie_in_classes(tables: list[Path], root: Path) -> bool:
    """Whether tables lie beside the images of some class folders, while other class folders have none."""
    having = {file.parent for file in tables}
    with_images = {folder for folder in entries(root) if folder.is_dir() and _has_images(folder)}
    return having <= with_images and len(with_images) > len(having)


def _has_images(folder: Path) -> bool:
    names = (name for _, _, files in os.walk(folder) for name in files)
    return any(os.path.splitext(name)[1].lower() in SUFFIXES and name[0] != "." for name in names)


def splits_of(folder: Path) -> tuple[str, ...]:
    """The names of the splits into which a folder is divided, as its files or its class folders are; () for none."""
    files = data_files(folder, "auto")
    if files:
        return tuple(sorted({name for file in files if (name := _split_name(file, folder))}))
    return tuple(name for name in _folders(folder) if _SPLIT.fullmatch(name))


def of_split(files: list[Path], root: Path, split: str | None) -> list[Path]:
    """The files of a folder that belong to a split. Raises UserError for a wrong choice, or none of several."""
    names = {file: _split_name(file, root) for file in files}
    known = sorted({name for name in names.values() if name})
    if split is None:
        if len(known) > 1:
            raise _several(root, known)
        return files
    chosen = [f for f in files if f.parent.name == split or re.match(re.escape(split) + r"([-_.]|$)", f.name)]
    if not chosen:
        raise _no_split(root, split, known)
    return chosen


def split_folder(root: Path, split: str | None) -> Path:
    """The folder of a split's class folders. Raises UserError for a wrong choice, or none of several."""
    folders = _folders(root)
    splits = [name for name in folders if _SPLIT.fullmatch(name)]
    if split is not None:
        if split not in folders:
            raise _no_split(root, split, splits)
        return root / split
    if splits and len(splits) == len(folders):
        if len(splits) > 1:
            raise _several(root, splits)
        return root / splits[0]
    return root


def _folders(root: Path) -> list[str]:
    return [entry.name for entry in entries(root) if entry.is_dir()]


def _split_name(file: Path, root: Path) -> str | None:
    """What the file's folder or the beginning of its name calls the split it belongs to, if anything."""
    if file.parent != root and _SPLIT.fullmatch(file.parent.name):
        return file.parent.name
    match = _SPLIT.match(file.name)
    return match[1] if match else None


def _several(root: Path, splits: list[str]) -> UserError:
    return UserError(f"{root} holds the splits {listed(splits)}: choose one with split")


def _no_split(root: Path, split: str, known: list[str]) -> UserError:
    if known:
        return UserError(f"{root} holds no split {split!r}: choose one of {listed(known)}")
    where = contents(root) if root.is_dir() else "it is one file"
    return UserError(f"{root} is not divided into splits: leave split {split!r} out; {where}")


def images_below(folder: Path, others: Counter[str], also: tuple[str, ...] = ()) -> list[str]:
    """The images, sorted, in a folder and those below it, linked ones too; not hidden ones, which systems leave there.

    others: is given how many other files there are, by their ending. also: further endings of images.
    """
    seen, found = set(), list[str]()
    for place, folders, files in os.walk(folder, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if name[0] != "." and name != "__MACOSX")
        for name in files:
            if name[0] == "." or name.lower() in LEFTOVERS:
                continue
            suffix = os.path.splitext(name)[1].lower()
            if suffix in SUFFIXES or suffix in also:
                found.append(os.path.join(place, name))
            else:
                others[suffix] += 1
    return sorted(found, key=lambda path: path.split(os.sep))
