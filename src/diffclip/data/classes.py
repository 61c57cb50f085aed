"""The classes of labelled data: whether their names fit, and whether splits share them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from diffclip.data.formats.paths import SUFFIXES, entries
from diffclip.errors import UserError
from diffclip.text import listed

log = logging.getLogger(__name__)

NO_CLASSES = frozenset(
    {"image", "images", "img", "imgs", "jpeg", "jpegs", "jpegimages", "jpg", "png", "photos", "pics"}
)
"""What the one folder of images is called that are not divided into classes."""
DIFFERING = 5  # classes of a split that another has not, which a message names


def check_names(name: str, classes: Sequence[str], own: Sequence[str], given: Sequence[str] | None) -> None:
    """Check the class names of a source called `name`, and those given for it, against what it has.

    own: what it calls its classes itself, its folders, a file or a column's metadata, if it does. Raises UserError for
    an empty name, and for names that are given in another order or number; warns of a name that is there twice.
    """
    empty = [number for number, text in enumerate(classes) if not text.strip()]
    if empty:
        raise UserError(f"{name}: class {empty[0]} of {len(classes)} has an empty name: give each class a name")
    twice = [text for text, count in sorted(Counter(classes).items()) if count > 1]
    if twice:
        log.warning("%s: several classes have the same name, which no text can tell apart: %s", name, _some(twice))
    if given and own:
        if len(given) != len(own):
            raise UserError(f"{name}: {len(given)} class names are given, but it has {len(own)} classes")
        own_names, stated = ([text.replace("_", " ").lower() for text in names] for names in (own, given))
        if own_names != stated and sorted(own_names) == sorted(stated):
            place = next(i for i, pair in enumerate(zip(own_names, stated, strict=True)) if pair[0] != pair[1])
            raise UserError(
                f"{name}: class names are in another order than its own: {given[place]!r} is given for class {place}, "
                f"{own[place]!r}; give them in its order"
            )


def check_same_classes(classes: Sequence[str], folder: Path, others: Sequence[Path]) -> None:
    """Raise UserError where a split has other class folders than another one beside it.

    Folders without images count as none, and a split that has no class folders, as a test set without labels, too.
    """
    for other in others:
        if other == folder:
            continue
        theirs = [entry.name for entry in entries(other) if entry.is_dir() and _has_image(entry)]
        difference = class_difference(folder.name, classes, other.name, theirs)
        divided = theirs and not (len(theirs) == 1 and theirs[0].lower() in NO_CLASSES)
        if divided and difference:
            raise UserError(f"{folder.parent}: {difference}: give both the same class folders")


def class_difference(one: str, classes: Sequence[str], other: str, others: Sequence[str]) -> str:
    """Which classes two splits do not share, in words; empty where they have the same in the same order."""
    mine, rest = sorted(set(classes) - set(others)), sorted(set(others) - set(classes))
    found = [f"only in {of}: {_some(names)}" for of, names in ((one, mine), (other, rest)) if names]
    if not found and list(classes) != list(others):
        found = ["the same ones, in another order"]
    return f"the splits {one} and {other} have other classes; {'; '.join(found)}" if found else ""


def _some(names: Sequence[str]) -> str:
    shown = listed(names[:DIFFERING])
    return f"{shown} and {len(names) - DIFFERING:,} more" if len(names) > DIFFERING else shown


def _has_image(folder: Path) -> bool:
    return any(file.suffix.lower() in SUFFIXES for file in folder.rglob("*"))
