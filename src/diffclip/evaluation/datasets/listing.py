"""`diffclip data list`: which data sets of the paper are there, and how to get the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from diffclip.errors import UserError
from diffclip.evaluation.datasets import opening
from diffclip.evaluation.datasets.pope import pope_labels, read_questions
from diffclip.evaluation.datasets.registry import Entry, registry
from diffclip.terminal import Terminal


@dataclass(frozen=True)
class Status:
    """What is there of a data set."""

    entry: Entry
    location: opening.Location | None
    images: dict[str, int]
    """split → images (POPE: questions) of the splits that can be opened."""
    classes: int
    """0 where it has none."""
    remarks: tuple[str, ...]
    """Counts that are not the published ones, and splits that cannot be opened."""


def status_of(wanted: Entry, root: Path) -> Status:
    """Look for a data set and open each of its splits."""
    location = opening.locate(wanted, root)
    images: dict[str, int] = {}
    classes = 0
    remarks: list[str] = []
    for split in wanted.images:
        if location is None:
            break
        try:
            images[split], classes, differences = _count(wanted, location, split)
        except UserError as error:
            remarks.append(str(error))
            continue
        remarks += differences
    return Status(wanted, location, images, classes, tuple(dict.fromkeys(remarks)))


def _count(wanted: Entry, location: opening.Location, split: str) -> tuple[int, int, list[str]]:
    if location.form == "pope":
        questions = len(read_questions(pope_labels(location.path)[split]))
        return questions, 0, opening.differences(wanted, questions, None, split)
    source = opening.open_location(wanted, location, split)
    names = source.classnames or ()
    return len(source), len(names), opening.differences(wanted, len(source), names, split)


def statuses(root: Path) -> Iterator[Status]:
    """Of every data set of the registry, in its order."""
    for wanted in registry().values():
        yield status_of(wanted, root)


def print_list(root: Path | None) -> None:
    """Print the list, then how to get what is missing."""
    console, place = Terminal(), opening.default_root(root)
    console.print(f"Data sets below {place} (--root, or ${opening.ROOT}):", highlight=False, soft_wrap=True)
    missing = []
    for status in statuses(place):
        if status.location is None:
            missing.append(status.entry)
            continue
        counts = (
            ", ".join(f"{split} {count:,}" for split, count in status.images.items()) or "nothing that can be opened"
        )
        unit = "questions" if status.entry.name == "pope" else "images"
        classes = f"; {status.classes:,} classes" if status.classes else ""
        _say(console, "", f"{status.entry.name}: {counts} {unit}{classes}", f"  in {status.location.path}")
        for remark in status.remarks:
            _say(console, f"  warning: {remark}")
    if missing:
        _say(console, "", f"Missing: {len(missing)} of {len(registry())}. How to get them:")
    for wanted in missing:
        ways = dict.fromkeys((opening.how_to_get(wanted, place), opening.from_its_authors(wanted, place)))
        first, *others = ways
        _say(console, "", wanted.name, f"  {first}", *(f"  or: {way}" for way in others))


def _say(console: Console, *lines: str) -> None:
    console.print(*lines, sep="\n", highlight=False, soft_wrap=True)
