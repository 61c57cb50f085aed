"""What the paper evaluates on, and more: published counts, protocol, and how to get each data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

import tomli

from diffclip.errors import UserError

SPLIT_NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "test": ("test", "testing"),
        "val": ("val", "valid", "validation", "dev"),
        "train": ("train", "training"),
    }
)
"""Split → what files call it, the preferred name first."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A data set. Splits are called train, val and test, whatever its files call them."""

    name: str
    """As in the LAION CLIP benchmark's results."""
    title: str
    """As in the paper's tables."""
    tasks: tuple[str, ...]
    """What the paper, or else its authors, do with it: names of `diffclip eval --tasks`, or pope."""
    images: Mapping[str, int]
    """split → published number of images (POPE: questions). A split that is absent does not exist."""
    source: str
    """Who publishes the counts."""
    how: str
    """The way to get it from its authors, with {root} and {folder} to fill in."""
    paper: bool = True
    """Whether the paper evaluates on it."""
    classes: int | None = None
    captions: int | None = None
    """Captions an image."""
    mean_per_class: bool = False
    """Whether the protocol averages accuracy over classes."""
    splits: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    other: Mapping[int, str] = field(default_factory=dict)
    """Counts that well-known copies have instead of the published ones, and why."""
    folders: tuple[str, ...] = ()
    laion: str | None = None
    laion_complete: bool = True
    """Whether LAION's copy has every split."""
    torchvision: str | None = None
    markers: tuple[str, ...] = ()
    """What the authors' archive holds, all of it: files, and folders that end in a slash."""
    label_key: str | None = None
    curated: str | None = None
    prompts: str | None = None

    @property
    def folder_names(self) -> tuple[str, ...]:
        """Names under which its folder is looked for."""
        return tuple(dict.fromkeys(filter(None, (self.name, self.laion, *self.folders))))

    def file_splits(self, split: str) -> tuple[str, ...]:
        """What files may call a split, the preferred name first. Raises UserError for a split it does not have."""
        if split not in self.images:
            raise UserError(f"{self.name} has no {split} split; it has {', '.join(self.images)}")
        return self.splits.get(split) or SPLIT_NAMES[split]


@cache
def registry() -> Mapping[str, Entry]:
    """Name → entry of every data set that is known by name."""
    tables = tomli.loads(files(__package__).joinpath("registry.toml").read_text(encoding="utf-8"))
    return MappingProxyType({name: _entry(name, table) for name, table in tables.items()})


def _entry(name: str, table: dict[str, Any]) -> Entry:
    for key in ("tasks", "folders", "markers"):
        table[key] = tuple(table.get(key, ()))
    table["splits"] = MappingProxyType({split: tuple(names) for split, names in table.get("splits", {}).items()})
    table["other"] = MappingProxyType({int(count): why for count, why in table.get("other", {}).items()})
    table["images"] = MappingProxyType(table["images"])
    return Entry(name=name, **table)


def entry(name: str) -> Entry:
    """The entry of a data set by its name, its title or a name of its folder, in upper or lower case.

    Raises UserError for a name that is none of them.
    """
    wanted = name.lower()
    for candidate in registry().values():
        if wanted in {known.lower() for known in (candidate.title, *candidate.folder_names)}:
            return candidate
    raise UserError(f"unknown data set {name!r}: choose one of {', '.join(registry())}")
