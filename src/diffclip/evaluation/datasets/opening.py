"""Find a data set below a root folder, whatever its form, and open it with its class names and templates."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from diffclip.data.classes import check_same_classes
from diffclip.data.example import Example
from diffclip.data.formats.class_folders import FolderSource
from diffclip.data.formats.parquet import column_names
from diffclip.data.formats.stamp import Stamped, stamp_of
from diffclip.data.sources import Source, open_source, splits_of
from diffclip.errors import UserError
from diffclip.evaluation.datasets import names
from diffclip.evaluation.datasets.authors import authors_folder, open_authors
from diffclip.evaluation.datasets.benchmarks import BENCHMARKS
from diffclip.evaluation.datasets.captions import ALL, caption_files, caption_form, short_name
from diffclip.evaluation.datasets.pope import pope_labels
from diffclip.evaluation.datasets.registry import Entry, entry
from diffclip.reading import read_text

logger = logging.getLogger(__name__)

ROOT = "DIFFCLIP_DATA"
_WNID = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class Location:
    """Where a data set lies and in which form."""

    path: Path
    form: Literal["authors", "captions", "files", "benchmark", "pope"]


def default_root(root: str | Path | None = None) -> Path:
    """The folder below which data sets lie: `root`, or else $DIFFCLIP_DATA, or else data/."""
    return Path(root or os.environ.get(ROOT) or "data").expanduser()


def locate(wanted: Entry, root: Path, *, own: bool = False) -> Location | None:
    """Where a data set lies: in a folder of `root` with one of its names, or in `root` if that has such a name.

    own: `root` may also be the data set's own folder, whatever it is called. The authors' archive is known by what lies
    in it, in `root` or in any folder of it, as `torchvision.datasets.X(root)` or a person puts it there.
    """
    folders = [folder for folder in (*(root / name for name in wanted.folder_names), root) if folder.is_dir()]
    for folder in folders:
        archive = authors_folder(wanted, folder)
        if archive is not None:
            return Location(archive, "authors")
    for folder in folders:
        if wanted.name in BENCHMARKS:
            if BENCHMARKS[wanted.name].lies_in(folder):
                return Location(folder, "benchmark")
        elif wanted.name == "pope":
            if pope_labels(folder):
                return Location(folder, "pope")
        elif "retrieval" in wanted.tasks and _has_captions(wanted, folder, own or folder != root):
            return Location(folder, "captions")
        elif (own or folder != root or root.name in wanted.folder_names) and _visible(folder):
            return Location(folder, "files")
    return None


def _has_captions(wanted: Entry, folder: Path, own: bool) -> bool:
    """Whether captions lie in a folder; in one that is not the data set's own, its name must be in theirs."""
    files = caption_files(folder, wanted.name)
    if own or folder.name in wanted.folder_names:
        return bool(files)
    return any(file.parent == folder and short_name(wanted.name) in file.name for file in files)


def _visible(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if entry.name[0] != "."]


def open_dataset(
    name: str,
    root: str | Path | None = None,
    split: str = "test",
    *,
    all_classes: bool = False,
    own: bool = False,
) -> Source:
    """A data set of the paper, with its class names and templates.

    name: as in `registry()`, or a title or folder name. root: where data sets lie, see `default_root`. split:
    train, val or test, whatever the files call it. all_classes: ImageNet-A and -R are scored among their own 200
    classes, as their authors do; this gives them the 1,000 names and numbers of ImageNet instead. own: root may be
    the data set's own folder, whatever it is called.

    Warns where the number of images or classes is not the published one. Raises UserError for a data set that is
    not there, saying how to get it, or a split that it does not have.
    """
    wanted, root = entry(name), default_root(root)
    if wanted.name == "pope":
        raise UserError("POPE is answered by a language model: score its answers with `diffclip pope`")
    wanted.file_splits(split)
    location = locate(wanted, root, own=own)
    if location is None:
        raise UserError(f"{wanted.name} is not in {root}: get it with: {how_to_get(wanted, root)}")
    source = _with_names(wanted, open_location(wanted, location, split), all_classes)
    source.name = f"{wanted.name}:{split}" if split != "test" else wanted.name
    for difference in differences(wanted, len(source), None if all_classes else source.classnames, split):
        logger.warning("%s, read as %s: %s", location.path, wanted.title, difference)
    return source


def open_location(wanted: Entry, location: Location, split: str) -> Source:
    """A data set where it lies, with the class names and templates of its own files only."""
    if location.form == "benchmark":
        return BENCHMARKS[wanted.name].open(location.path)
    if location.form == "authors":
        return open_authors(wanted.name, location.path, split)
    if location.form == "captions":
        return _captions(wanted, location.path, split)
    folder = _only_folder(location.path)
    for name in wanted.file_splits(split):
        if _holds_class_folders(folder / name):  # first, as the archives that they came from may lie beside them
            source = open_source(str(folder / name), format="folder")
            assert isinstance(source, FolderSource)
            others = [folder / other for of in wanted.images for other in wanted.file_splits(of)]
            check_same_classes(source.folders, folder / name, [o for o in others if _holds_class_folders(o)])
            return source
    splits = splits_of(folder)
    own = next((name for name in wanted.file_splits(split) if name in splits), None)
    if splits and own is None:
        raise UserError(f"{folder} has no {split} split of {wanted.name}; it has {', '.join(splits)}")
    if own is None and len(wanted.images) > 1:
        raise UserError(
            f"{folder} is not divided into splits: expected folders or files named {', '.join(wanted.images)}"
        )
    _check_shards(folder, own)
    source = open_source(str(folder), split=own, label_key=_label_key(wanted, folder, own))
    if "retrieval" in wanted.tasks and isinstance(source, FolderSource):
        raise UserError(
            f"{folder} has images but no captions of {wanted.name} in a known form, such as dataset_*.json, "
            "captions.txt, captions_val2017.json or *.token.txt"
        )
    return source


def _captions(wanted: Entry, folder: Path, split: str) -> Source:
    """Captions of a split; where the files have no test split, of the validation split or of all, with a warning."""
    form = caption_form(folder, wanted.name)
    if form is None or not form.splits:
        raise UserError(f"{folder} has no captions of the {split} split of {wanted.name}")
    own = next((name for name in (split, *(("val", ALL) if split == "test" else ())) if name in form.splits), split)
    if own != split:
        which = f"those of the {own} split" if own else "all of its captions"
        logger.warning("%s has no %s split: %s are taken, not the published one", form.files[0], split, which)
    return form.open(own)


def _only_folder(folder: Path) -> Path:
    """The folder, or the one folder in it that the archive of some data sets makes: sketch/, imagenet-a/."""
    inside = _visible(folder)
    if len(inside) == 1 and inside[0].is_dir() and not splits_of(folder):
        below = [entry.name for entry in inside[0].iterdir() if entry.is_dir()]
        if len(below) > 1:
            return inside[0]
    return folder


def _holds_class_folders(folder: Path) -> bool:
    inside = list(folder.iterdir()) if folder.is_dir() else []
    return any(e.is_dir() for e in inside) and not any(e.suffix in (".tar", ".parquet", ".csv") for e in inside)


def _check_shards(folder: Path, split: str | None) -> None:
    """Raise UserError where the LAION benchmark's nshards.txt says that there are more shards than lie beside it."""
    place = folder / (split or "")
    try:
        expected = int(read_text(place / "nshards.txt", most=100))
    except (OSError, ValueError):
        return
    present = len(list(place.glob("*.tar")))
    if present != expected:
        raise UserError(f"{place} has {present} shards, but its nshards.txt says {expected}: download it again")


def _label_key(wanted: Entry, folder: Path, split: str | None) -> str | None:
    """The label column where a parquet file has several, as CIFAR-100 has."""
    if wanted.label_key is None:
        return None
    for file in sorted([*folder.glob("*.parquet"), *folder.glob("*/*.parquet")]):
        if split is None or split in str(file.relative_to(folder)):
            return wanted.label_key if wanted.label_key in column_names(file) else None
    return None


class RenumberedSource:
    """A source whose class i is class numbers[i] of other class names, or no class where that is -1."""

    def __init__(self, source: Source, numbers: Sequence[int], classnames: tuple[str, ...]) -> None:
        self.name, self.templates = source.name, source.templates
        self.classnames: tuple[str, ...] | None = classnames
        self._source, self._numbers = source, tuple(numbers)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        example = self._source[index]
        if example.label is None:
            return example
        if example.label >= len(self._numbers):
            raise UserError(f"{self.name} has the label {example.label}, but only {len(self._numbers)} classes")
        number = self._numbers[example.label]
        return Example(example.image, example.captions, number if number >= 0 else None)

    def stamp(self) -> str:
        inner = self._source.stamp() if isinstance(self._source, Stamped) else self._source.name
        return stamp_of([], inner, self._numbers)


def _with_names(wanted: Entry, source: Source, all_classes: bool) -> Source:
    """The source with class names that are words and with the data set's templates."""
    if wanted.classes is None:
        return source
    if wanted.curated == "imagenet":
        source = _imagenet(wanted, source, all_classes)
    elif all_classes:
        raise UserError(f"{wanted.name} has no classes of ImageNet: all_classes is for imagenet-a and imagenet-r")
    elif wanted.curated and source.classnames and "BACKGROUND Google" in source.classnames:
        curated = names.classnames(wanted.curated, wanted.name)
        source.classnames = curated if curated and len(curated) == len(source.classnames) else source.classnames
    elif source.classnames:
        source.classnames = tuple(name.replace("_", " ") for name in source.classnames)
    if source.templates in (None, ("a photo of a {c}.",)):
        source.templates = names.templates(wanted.prompts, wanted.name)
    return source


def _imagenet(wanted: Entry, source: Source, all_classes: bool) -> Source:
    """ImageNet's classes by the names of open_clip; only names in the LAION benchmark's classnames.txt stay.

    Class folders and some tables name their classes by WordNet ids, ImageNet-V2 by numbers, other tables by long
    lists of synonyms. Of ImageNet-A and -R the 200 classes are kept, unless all_classes.
    """
    everything, own = names.imagenet_classnames(), source.classnames
    subset = names.imagenet_subset(wanted.name) or range(len(everything))
    numbers: Sequence[int]  # the class of ImageNet that each label stands for
    if isinstance(source, FolderSource):
        numbers, own = [_class_number(folder, source.name) for folder in source.folders], None
    elif own and all(_WNID.fullmatch(name) for name in own):
        numbers, own = [_class_number(name, source.name) for name in own], None
    else:
        numbers = range(len(everything)) if own and len(own) == len(everything) else subset
    kept = list(range(len(everything))) if all_classes else sorted(set(numbers) & set(subset))
    place = {number: label for label, number in enumerate(kept)}
    if own is None or len(own) != len(kept) or any("," in name for name in own):
        own = tuple(everything[number] for number in kept)
    return RenumberedSource(source, [place.get(number, -1) for number in numbers], own)


def _class_number(folder: str, where: str) -> int:
    if folder in names.imagenet_wnids():
        return names.imagenet_wnids().index(folder)
    if folder.isdecimal() and int(folder) < len(names.imagenet_wnids()):
        return int(folder)
    raise UserError(f"{where}: the folder {folder!r} is neither a WordNet id nor a number of an ImageNet class")


def differences(wanted: Entry, images: int, classnames: Sequence[str] | None, split: str) -> list[str]:
    """What is not as published: one line a number, with both numbers. Without class names only images count."""
    lines = []
    published = wanted.images[split]
    if images != published:
        why = f" ({wanted.other[images]})" if images in wanted.other else ""
        unit = "questions" if wanted.name == "pope" else "images"
        lines.append(f"{images:,} {split} {unit}, but {published:,} are published{why}")
    if wanted.classes and classnames is not None and len(classnames) != wanted.classes:
        lines.append(f"{len(classnames):,} classes, but {wanted.classes:,} are published")
    return lines


def how_to_get(wanted: Entry, root: Path) -> str:
    """The command or the place that gives the data set, so that it is found below `root` afterwards."""
    if wanted.laion and wanted.laion_complete:
        folder = root / wanted.laion
        return f"hf download clip-benchmark/{wanted.laion} --repo-type dataset --local-dir {folder}"
    return from_its_authors(wanted, root)


def from_its_authors(wanted: Entry, root: Path) -> str:
    """The way to get the data set in its authors' or torchvision's form."""
    return wanted.how.replace("{folder!r}", repr(str(root / wanted.name))).format(root=root, folder=root / wanted.name)
