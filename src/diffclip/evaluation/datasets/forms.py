"""The forms of torchvision in which data sets are published, which `data.sources` does not read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffclip.data.example import Example, Options
from diffclip.data.formats.files import SUFFIXES, FolderSource
from diffclip.data.formats.stamp import stamp_of
from diffclip.data.images import read_image, to_rgb
from diffclip.data.sources import Source, Subset
from diffclip.errors import UserError
from diffclip.evaluation.datasets.image_files import ImageFiles
from diffclip.evaluation.datasets.registry import registry
from diffclip.reading import check_regular, lines

CALTECH_TRAINING = 30  # images a class (Fei-Fei et al. 2004; Kornblith et al. 2019)
_SEED = 20_250_309


class TorchvisionSource:
    """A data set of torchvision, which yields encoded bytes or Pillow images, with a label."""

    templates: tuple[str, ...] | None = None

    def __init__(self, name: str, dataset: Any) -> None:
        self.name, self._dataset = name, dataset
        self.classnames: tuple[str, ...] | None = tuple(text.replace("_", " ") for text in dataset.classes)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Example:
        """Raises BadImage for a file that is missing."""
        image, label = self._dataset[index]
        return Example(to_rgb(image) if isinstance(image, Image.Image) else image, label=int(label))

    def stamp(self) -> str:
        data = self._dataset
        folder = getattr(data, "_base_folder", None) or getattr(data, "_data_path", None)
        folder = Path(folder or Path(data.root) / getattr(data, "base_folder", ""))
        return stamp_of(sorted(folder.rglob("*")), repr(data))  # which names the split


def torchvision(name: str, cls: str, root: Path, split: str) -> Source:
    """The data set of torchvision class `cls` in `root`, by our name of the split.

    torchvision checks the MD5 sums of CIFAR's pickles before it loads them: no other pickle is executed.
    """
    return _FORMS[cls](name, root, split)


def _build(cls: str, where: Path, *args: Any, **options: Any) -> Any:
    from torchvision import datasets

    try:
        _check_lists(where, cls)
        return getattr(datasets, cls)(where, *args, download=False, **options)
    except ModuleNotFoundError as error:  # scipy, for the .mat files of Flowers-102
        raise UserError(f"torchvision's {cls} needs {error.name}: pip install {error.name}") from None
    except (RuntimeError, OSError, KeyError, ValueError, EOFError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{where} has the folders of torchvision's {cls}, but cannot be read: {reason}") from None


def _check_lists(where: Path, cls: str) -> None:
    """Raises OSError where a file that torchvision reads beside the images is a pipe, for which it would wait."""
    markers = [marker for entry in registry().values() if entry.torchvision == cls for marker in entry.markers]
    for folder in {Path(marker).parts[0] for marker in markers}:
        for file in (where / folder).rglob("*"):
            if file.suffix.lower() not in SUFFIXES and not file.is_dir():
                check_regular(file)


def _cifar(cls: str) -> Callable[[str, Path, str], Source]:
    return lambda name, root, split: TorchvisionSource(name, _build(cls, root, train=split == "train"))


def _with_loader(cls: str) -> Callable[[str, Path, str], Source]:
    return lambda name, root, split: TorchvisionSource(name, _build(cls, root, split, loader=read_image))


def _pets(name: str, root: Path, split: str) -> Source:
    """torchvision would have Pillow open the images by their names, whatever they are."""
    pets = _build("OxfordIIITPet", root, "trainval" if split == "train" else split)
    return ImageFiles(name, pets._images, labels=pets._labels, classnames=tuple(pets.classes))


def _caltech101(name: str, root: Path, split: str) -> Source:
    """Class folders without a split: 30 random images of each class for training, the others for testing.

    The background class counts, as in the protocol; torchvision's class would leave it out.
    """
    folder = root / "caltech101" / "101_ObjectCategories"
    source = FolderSource(folder if folder.is_dir() else root / "101_ObjectCategories", Options(name))
    labels = source.labels
    order = np.random.default_rng(_SEED).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]  # by class, shuffled within each
    sorted_labels = labels[order]
    rank = np.arange(len(order)) - np.searchsorted(sorted_labels, sorted_labels)
    training = rank < CALTECH_TRAINING
    return Subset(source, np.sort(order[training if split == "train" else ~training]), split)


def _sun397(name: str, root: Path, split: str) -> Source:
    """By the authors' lists of partition 1; without them every image is one test split, as in the LAION benchmark."""
    folder = root / "SUN397"
    number = {path: i for i, path in enumerate(filter(None, lines(folder / "ClassName.txt")))}
    named = {"train": "Training_01.txt", "test": "Testing_01.txt"}
    place = next((p for p in (folder, folder / "Partitions", root, root / "Partitions") if _has(p, named)), None)
    if place:
        images = [line for line in lines(place / named[split]) if line]
    elif split == "test":
        images = sorted("/" + file.relative_to(folder).as_posix() for file in folder.rglob("sun_*.jpg"))
    else:
        raise UserError(f"{folder} has no {named[split]}: put the lists of the authors' Partitions.zip there")
    unknown = next((image for image in images if image.rpartition("/")[0] not in number), None)
    if unknown:
        raise UserError(f"{folder}: {unknown} is in no class of ClassName.txt")
    return ImageFiles(
        name,
        [folder / image[1:] for image in images],
        labels=[number[image.rpartition("/")[0]] for image in images],
        classnames=tuple(path[3:].replace("_", " ").replace("/", " ") for path in number),
    )


def _has(folder: Path, lists: Mapping[str, str]) -> bool:
    return all((folder / file).is_file() for file in lists.values())


_FORMS: dict[str, Callable[[str, Path, str], Source]] = {
    "CIFAR10": _cifar("CIFAR10"),
    "CIFAR100": _cifar("CIFAR100"),
    "DTD": _with_loader("DTD"),
    "Flowers102": _with_loader("Flowers102"),
    "Food101": _with_loader("Food101"),
    "FGVCAircraft": _with_loader("FGVCAircraft"),
    "OxfordIIITPet": _pets,
    "Caltech101": _caltech101,
    "SUN397": _sun397,
}
