"""The archives of data sets as their authors publish them: lists of images beside the images.

torchvision's classes read the same archives, but only under folder names of their own: here what lies in a folder
counts. The splits, their order, the labels and the names of the classes are theirs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffclip.data.example import Example, Options
from diffclip.data.formats.class_folders import FolderSource
from diffclip.data.formats.paths import inside_of
from diffclip.data.formats.stamp import stamp_of
from diffclip.data.sources import Source, Subset
from diffclip.errors import UserError
from diffclip.evaluation.datasets.image_files import ImageFiles
from diffclip.evaluation.datasets.registry import SPLIT_NAMES, Entry
from diffclip.reading import check_regular, parse_json, read_text

CALTECH_TRAINING = 30  # images a class (Fei-Fei et al. 2004; Kornblith et al. 2019)
MOST_NUMBERS = 1_000_000  # in a .mat file, which may be packed
_SEED = 20_250_309


def authors_folder(wanted: Entry, folder: Path) -> Path | None:
    """Where the lists of a data set lie: in a folder, in a folder of it, or below one with a name of the data set."""
    if not wanted.markers or not folder.is_dir():
        return None
    splits = {name for names in SPLIT_NAMES.values() for name in names}
    below = [entry for entry in sorted(folder.iterdir()) if entry.name[0] != "." and entry.name.lower() not in splits]
    deeper = (authors_folder(wanted, entry) for entry in below if entry.name in wanted.folder_names)
    here = (place for place in (folder, *below) if _holds(place, wanted.markers))
    return next(here, None) or next(filter(None, deeper), None)


def _holds(folder: Path, markers: Iterable[str]) -> bool:
    return all((folder / name).is_dir() if name.endswith("/") else (folder / name).is_file() for name in markers)


def open_authors(name: str, folder: Path, split: str) -> Source:
    """A split of a data set of the registry whose lists lie in `folder`: see `authors_folder`.

    Raises UserError for lists that are missing or say something else than they should.
    """
    try:
        return _READERS[name](name, folder, split)
    except UserError:
        raise
    except (OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder} has the lists of {name}, but cannot be read: {reason}") from None


def _rows(file: Path, pattern: str, form: str) -> list[re.Match[str]]:
    """The lines of a list. Raises UserError for one of another form."""
    rows = []
    for number, line in enumerate(read_text(file, "utf-8-sig").split("\n"), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = re.fullmatch(pattern, line.strip())
        if match is None:
            raise UserError(f"{file}:{number}: expected {form}, not {line.strip()[:80]!r}")
        rows.append(match)
    return rows


def _images(
    name: str, folder: Path, images: Iterable[tuple[str, str]], classes: Iterable[str], listed: Path
) -> ImageFiles:
    """Images (path below `folder`, class) of the list at `listed`, their labels by the order of `classes`."""
    number = {text: label for label, text in enumerate(classes)}
    images = list(images)
    unknown = next((f"{path} is in the class {text!r}" for path, text in images if text not in number), None)
    if unknown:
        raise UserError(f"{listed}: {unknown}, which {name} does not have")
    return ImageFiles(
        name,
        [Path(inside_of(folder, path, str(listed))) for path, _ in images],
        labels=[number[text] for _, text in images],
        classnames=tuple(number),
    )


def _pets(name: str, folder: Path, split: str) -> Source:
    lists = {part: folder / "annotations" / f"{part}.txt" for part in ("trainval", "test")}
    rows = {
        part: _rows(file, r"(\S+)_\d+ (\d+)( .*)?", "an image, the number of its class and two other numbers")
        for part, file in lists.items()
    }
    breeds = {int(row[2]): row[1].replace("_", " ").title() for part in rows.values() for row in part}
    own = "trainval" if split == "train" else split
    images = ((f"{row[0].split()[0]}.jpg", breeds[int(row[2])]) for row in rows[own])
    return _images(name, folder / "images", images, (breeds[number] for number in sorted(breeds)), lists[own])


def _flowers(name: str, folder: Path, split: str) -> Source:
    from torchvision.datasets import Flowers102

    labels = _matrix(folder / "imagelabels.mat", "labels")
    numbers = _matrix(folder / "setid.mat", {"train": "trnid", "val": "valid", "test": "tstid"}[split])
    names = list(Flowers102.classes)
    if not len(numbers) or not 1 <= numbers.min() <= numbers.max() <= len(labels):
        raise UserError(f"{folder}: setid.mat names images from 1 to {len(labels)}, the number of labels, and no other")
    if not 1 <= labels.min() <= labels.max() <= len(names):
        raise UserError(f"{folder}: imagelabels.mat holds labels from 1 to {len(names)}, and no other")
    images = ((f"image_{i:05}.jpg", names[labels[i - 1] - 1]) for i in numbers)
    return _images(name, folder / "jpg", images, names, folder / "setid.mat")


def _matrix(file: Path, key: str) -> NDArray[np.integer[Any]]:
    from scipy.io import loadmat, whosmat
    from scipy.io.matlab import MatReadError

    check_regular(file)
    try:
        if any(math.prod(shape) > MOST_NUMBERS for _, shape, _ in whosmat(str(file))):
            raise ValueError(f"{file.name}: expected at most {MOST_NUMBERS:,} numbers")
        found = loadmat(str(file))[key].ravel()
    except MatReadError as error:
        raise ValueError(f"{file.name}: {error}") from error
    if not np.issubdtype(found.dtype, np.integer):
        raise ValueError(f"{file.name}: expected whole numbers as {key}")
    return np.asarray(found)


def _food(name: str, folder: Path, split: str) -> Source:
    file = folder / "meta" / f"{split}.json"
    by_class = parse_json(read_text(file, "utf-8-sig"))
    if not (isinstance(by_class, dict) and all(isinstance(paths, list) for paths in by_class.values())):
        raise UserError(f"{file}: expected a list of images for each class")
    images = ((f"{path}.jpg", text) for text, paths in by_class.items() for path in paths)
    return _images(name, folder / "images", images, sorted(by_class), file)


def _dtd(name: str, folder: Path, split: str) -> Source:
    lists = {part: folder / "labels" / f"{part}1.txt" for part in ("train", "val", "test")}
    rows = {part: _rows(file, r"(\S+)/\S+", "a class, a slash and a file") for part, file in lists.items()}
    classes = sorted({row[1] for part in rows.values() for row in part})
    return _images(name, folder / "images", ((row[0], row[1]) for row in rows[split]), classes, lists[split])


def _aircraft(name: str, folder: Path, split: str) -> Source:
    folder = folder / "data" if (folder / "data").is_dir() else folder
    file = folder / f"images_variant_{split}.txt"
    images = ((f"{row[1]}.jpg", row[2]) for row in _rows(file, r"(\S+) (.+)", "an image and its variant"))
    classes = (row[0] for row in _rows(folder / "variants.txt", r".+", "a variant"))
    return _images(name, folder / "images", images, classes, file)


def _caltech101(name: str, folder: Path, split: str) -> Source:
    """Class folders without a split: 30 random images of each class for training, the others for testing.

    The background class counts, as in the protocol; torchvision's class would leave it out.
    """
    source = FolderSource(folder, Options(name))
    labels = source.labels
    order = np.random.default_rng(_SEED).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]  # by class, shuffled within each
    sorted_labels = labels[order]
    rank = np.arange(len(order)) - np.searchsorted(sorted_labels, sorted_labels)
    training = rank < CALTECH_TRAINING
    return Subset(source, np.sort(order[training if split == "train" else ~training]), split)


def _sun397(name: str, folder: Path, split: str) -> Source:
    """By the authors' lists of partition 1; without them every image is one test split, as in the LAION benchmark."""
    lists = {"train": "Training_01.txt", "test": "Testing_01.txt"}
    places = (place / below for place in (folder, folder.parent) for below in ("", "Partitions"))
    place = next((place for place in places if all((place / file).is_file() for file in lists.values())), None)
    classes = [row[1] for row in _rows(folder / "ClassName.txt", r"/(.+)", "a slash and a class")]
    if place:
        listed = place / lists[split]
        paths = [row[1] for row in _rows(listed, r"/(.+)", "a slash and an image")]
    elif split == "test":
        listed = folder
        paths = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("sun_*.jpg"))
    else:
        raise UserError(f"{folder} has no {lists[split]}: put the lists of the authors' Partitions.zip there")
    source = _images(name, folder, ((path, path.rpartition("/")[0]) for path in paths), classes, listed)
    source.classnames = tuple(text[2:].replace("/", " ") for text in classes)
    return source


class _Pictures:
    """Images that lie in memory, with labels."""

    templates: tuple[str, ...] | None = None

    def __init__(
        self, name: str, pictures: NDArray[np.uint8], labels: list[int], classnames: Iterable[str], folder: Path
    ) -> None:
        self.name = name
        self.classnames: tuple[str, ...] | None = tuple(classnames)
        self._pictures, self._labels, self._folder = pictures, labels, folder

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Example:
        return Example(self._pictures[index], label=self._labels[index])

    def stamp(self) -> str:
        return stamp_of(sorted(self._folder.iterdir()), self.name, len(self))


def _cifar(name: str, folder: Path, split: str) -> Source:
    """CIFAR's pickles by torchvision, which loads no other than the official ones: it compares their MD5 sums."""
    from torchvision import datasets

    official = datasets.CIFAR100 if name == "cifar100" else datasets.CIFAR10
    for file in folder.iterdir():
        check_regular(file)
    here = type(official.__name__, (official,), {"base_folder": folder.name})
    data = here(folder.parent, train=split == "train", download=False)
    return _Pictures(name, data.data, [int(label) for label in data.targets], data.classes, folder)


_READERS: Mapping[str, Callable[[str, Path, str], Source]] = {
    "caltech101": _caltech101,
    "cifar10": _cifar,
    "cifar100": _cifar,
    "dtd": _dtd,
    "fgvc_aircraft": _aircraft,
    "flowers": _flowers,
    "food101": _food,
    "pets": _pets,
    "sun397": _sun397,
}
