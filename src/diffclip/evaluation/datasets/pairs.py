"""Pairs of images with a statement each, of which each statement is true of its own image only."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from diffclip.data.formats.stamp import Stamped, stamp_of
from diffclip.data.sources import Example


class Pair(Protocol):
    """Two images that differ in one thing, and what is true of each but not of the other."""

    @property
    def pattern(self) -> str: ...
    @property
    def images(self) -> tuple[bytes | NDArray[np.uint8], bytes | NDArray[np.uint8]]: ...
    @property
    def statements(self) -> tuple[str, str]: ...


class PairSource(Protocol):
    """A list of pairs."""

    name: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Pair: ...


@dataclass(frozen=True)
class FilePair:
    """A pair read from files."""

    pattern: str
    images: tuple[bytes, bytes]
    statements: tuple[str, str]


@runtime_checkable
class PatternsKnown(Protocol):
    """A pair source that knows the pattern of each pair without reading it."""

    patterns: Sequence[str]


class PairImages:
    """A pair source as a source of images, each with its statement: image 2 p + i is image i of pair p.

    role: the split that it is, see `datasets.dataset.BenchmarkSource`.
    """

    classnames: tuple[str, ...] | None = None
    templates: tuple[str, ...] | None = None

    def __init__(self, pairs: PairSource, role: str = "pairs") -> None:
        self.name = pairs.name
        self.pairs, self.role = pairs, role

    def __len__(self) -> int:
        return 2 * len(self.pairs)

    def __getitem__(self, index: int) -> Example:
        pair = self.pairs[index // 2]
        return Example(pair.images[index % 2], (pair.statements[index % 2],))

    @property
    def patterns(self) -> Sequence[str]:
        """The pattern of each pair."""
        if isinstance(self.pairs, PatternsKnown):
            return self.pairs.patterns
        return [self.pairs[index].pattern for index in range(len(self.pairs))]

    def stamp(self) -> str:
        return stamp_of([], self.pairs.stamp() if isinstance(self.pairs, Stamped) else (self.name, len(self)))


def pattern_name(pattern: str) -> str:
    """ "Orientation and Direction" as a metric's name: orientation_and_direction."""
    return re.sub(r"\W+", "_", pattern.strip().lower())
