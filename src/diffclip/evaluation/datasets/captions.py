"""Files of captions as people have them beside images: Karpathy's, COCO's, Kaggle's, those of Flickr's authors."""

from __future__ import annotations

import csv
import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from diffclip.data.formats.paths import SUFFIXES
from diffclip.data.sources import Source
from diffclip.errors import UserError
from diffclip.evaluation.datasets.image_files import ImageFiles
from diffclip.reading import lines, parse_json, read_text
from diffclip.text import listed

log = logging.getLogger(__name__)

ALL = ""
"""The split of captions that are not divided."""
_IMAGE = re.compile(rf"(.+?(?:{'|'.join(map(re.escape, SUFFIXES))}))(?:#\d+)?[,|\t](.*)", re.IGNORECASE | re.DOTALL)
_SPLIT_IN_NAME = re.compile(r"(?<![a-z])(train|restval|val|dev|test)(?![a-z])", re.IGNORECASE)
_OURS = {"restval": "train", "dev": "val"}

Captions = dict[str, dict[str, list[str]]]
"""Split → image's file name → its captions."""


@dataclass(frozen=True)
class CaptionForm:
    """Captions and images of one folder."""

    folder: Path
    files: tuple[Path, ...]
    captions: Captions
    remarks: tuple[str, ...] = field(default=())
    """What of the files could not be used."""

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.captions)

    def open(self, split: str) -> Source:
        """Images with the captions of a split. Raises UserError where none of the images is there."""
        where = str(self.files[0])
        captions = self.captions.get(split)
        if not captions:
            raise UserError(f"{where} has no captions of the {split} split; it has {listed(self.captions)}")
        places = _images_below(self.folder)
        if not any(Path(image).name in places for image in captions):
            raise UserError(f"{where} names {len(captions)} images, and none of them is in {self.folder} or below it")
        self._tell(places)
        paths = [places.get(Path(image).name, self.folder / Path(image).name) for image in captions]
        texts = [tuple(text for text in of_image if text) for of_image in captions.values()]
        return ImageFiles(self.folder.resolve().name + (f":{split}" if split else ""), paths, captions=texts)

    def _tell(self, places: Mapping[str, Path]) -> None:
        """Warn of whatever of captions and images does not fit together, missing images apart, which are counted."""
        every = [(image, texts) for of_split in self.captions.values() for image, texts in of_split.items()]
        named = {Path(image).name for image, _ in every}
        remarks = list(self.remarks)
        if empty := sum(not text for _, texts in every for text in texts):
            remarks.append(f"{empty:,} captions are empty and are left out")
        if silent := sum(not any(texts) for _, texts in every):
            remarks.append(f"{silent:,} images have no caption")
        if unnamed := len(places.keys() - named):
            remarks.append(f"{unnamed:,} of {len(places):,} images below {self.folder} are not named in it")
        for remark in remarks:
            log.warning("%s: %s", self.files[0], remark)


def caption_files(folder: Path, name: str | None = None) -> list[Path]:
    """The files of captions in a folder or one folder down, known by their names; none is read.

    name: that of the data set, which decides where Karpathy's files of several lie.
    """
    for pattern, _ in _FORMS:
        files = sorted(file for place in (pattern, f"*/{pattern}") for file in folder.glob(place) if file.is_file())
        if pattern.startswith("dataset_") and name is not None:
            files = [file for file in files if file.stem == f"dataset_{short_name(name)}"] or files
            files = files if len(files) == 1 else []
        if files:
            return files
    return []


def short_name(name: str) -> str:
    """What Karpathy's and LAION's files call a data set."""
    return name.lower().removeprefix("ms").removesuffix("_captions")


def caption_form(folder: Path, name: str | None = None) -> CaptionForm | None:
    """The captions of `caption_files`, read; None where there are none.

    Raises UserError where they are of several data sets, or a file is of another form.
    """
    files = caption_files(folder, name)
    if not files:
        return None
    pattern, read = next((pattern, read) for pattern, read in _FORMS if files[0].match(pattern))
    if pattern.startswith("dataset_"):
        files = [file for file in files if file.stem == f"dataset_{short_name(folder.name)}"] or files
        if len(files) > 1:
            names = listed(file.name for file in files)
            raise UserError(f"{folder} has the captions of several data sets: move all but one of {names} away")
    captions: Captions = {}
    remarks: list[str] = []
    for file in files:
        for split, of_split in _read(file, read, remarks).items():
            captions.setdefault(split, {}).update(of_split)
    if pattern.startswith("*.token") and captions:
        captions = _by_lists(folder, captions[ALL])
    return CaptionForm(folder, tuple(files), captions, tuple(remarks))


def _images_below(folder: Path) -> dict[str, Path]:
    """Name → place of every image below a folder, through links too."""
    places: dict[str, Path] = {}
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        here = os.path.realpath(place)
        if here in seen:
            folders.clear()  # a link that leads back
            continue
        seen.add(here)
        places |= {name: Path(place) / name for name in files if name.lower().endswith(SUFFIXES)}
    return places


def _read(file: Path, read: Callable[[str, Path, list[str]], Captions], remarks: list[str]) -> Captions:
    try:
        return read(read_text(file, "utf-8-sig"), file, remarks)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is no file of captions: {type(error).__name__} {error}") from None


def _named_split(file: Path) -> str:
    found = _SPLIT_IN_NAME.search(file.stem)
    return _OURS.get(found[1].lower(), found[1].lower()) if found else ALL


def _json(text: str, file: Path, remarks: list[str]) -> Captions:
    """Karpathy's, with a split and sentences in each image, or COCO's, with annotations beside the images."""
    table = parse_json(text)
    captions: dict[str, dict[str, list[str]]] = defaultdict(dict)
    if "annotations" in table:
        names = {image["id"]: image["file_name"] for image in table["images"]}
        of_split = captions[_named_split(file)]
        unknown = 0
        for annotation in table["annotations"]:
            if annotation["image_id"] in names:
                of_split.setdefault(names[annotation["image_id"]], []).append(annotation["caption"].strip())
            else:
                unknown += 1
        if unknown:
            remarks.append(f"{unknown:,} captions are of images that it does not list, and are left out")
        return dict(captions)
    for image in table["images"]:
        texts = [sentence["raw"].strip() for sentence in image["sentences"]]
        of_split = captions[_OURS.get(image["split"], image["split"])]
        if image["filename"] in of_split:
            remarks.append(f"{image['filename']} is there twice, and the last counts")
        of_split[image["filename"]] = texts
    return dict(captions)


def _lines(text: str, file: Path, remarks: list[str]) -> Captions:
    """IMAGE,CAPTION or IMAGE|NUMBER|CAPTION or IMAGE#NUMBER and a tab in each line; the first may name the columns."""
    captions: dict[str, list[str]] = {}
    wrong: list[int] = []
    rows = text.split("\n")  # not splitlines, which also cuts at a form feed or at Unicode's separators
    for number, line in enumerate(rows, start=1):
        match = _IMAGE.fullmatch(line.strip())
        if match is None:
            if line.strip() and number > 1:
                wrong.append(number)
            continue
        caption = match[2].strip()
        if file.suffix == ".csv":
            caption = re.sub(r"^\d+\s*\|", "", caption).strip()
        captions.setdefault(match[1].strip(), []).append(_unquoted(caption))
    if wrong:
        count = sum(bool(line.strip()) for line in rows)
        remarks.append(f"{len(wrong):,} of {count:,} lines have no image and caption; the first is line {wrong[0]}")
    return {_named_split(file): captions} if captions else {}


def _unquoted(caption: str) -> str:
    """A caption that a CSV writer has put in quotes, without them; any other as it is."""
    if len(caption) > 1 and caption[0] == caption[-1] == '"':
        cells = next(csv.reader([caption]), [])
        if len(cells) == 1:
            return cells[0].strip()
    return caption


def _by_lists(folder: Path, captions: dict[str, list[str]]) -> Captions:
    """Captions by the authors' lists Flickr_8k.trainImages.txt, .devImages.txt, .testImages.txt, if all are there."""
    lists = {split: _list(folder, f"*.{own}Images.txt") for split, own in _LISTS.items()}
    if not all(lists.values()):
        return {ALL: captions}
    return {split: {i: captions[i] for i in images if i in captions} for split, images in lists.items()}


_LISTS = {"train": "train", "val": "dev", "test": "test"}


def _list(folder: Path, pattern: str) -> list[str]:
    files: Iterable[Path] = sorted([*folder.glob(pattern), *folder.glob(f"*/{pattern}")])[:1]
    return [line for file in files for line in lines(file) if line]


_FORMS: tuple[tuple[str, Callable[[str, Path, list[str]], Captions]], ...] = (
    ("dataset_*.json", _json),
    ("*_karpathy.json", _json),
    ("*_karpathy.txt", _lines),
    ("captions_*20[0-9][0-9].json", _json),
    ("*.token.txt", _lines),
    ("*.token", _lines),
    ("captions.txt", _lines),
    ("results.csv", _lines),
)
