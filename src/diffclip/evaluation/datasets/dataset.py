"""A data set by its splits, each opened when it is first needed, and what it has for tasks."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from diffclip.data.images import BadImage
from diffclip.data.sources import Example, Source

Opener = Callable[[], Source]
LOOKED_AT = 20  # examples that tell what a data set has


@runtime_checkable
class BenchmarkSource(Protocol):
    """A source that is good for one benchmark alone, such as pairs of images."""

    role: str
    """The split that its benchmark reads, such as "pairs": the test split of such a data set is that one too."""


@dataclass
class DataSet:
    """What models are tested on, and what a task may learn from first.

    Splits are called test, train and val; a benchmark of its own kind reads a split of its own name, such as "pairs".
    """

    name: str
    """What results call it."""
    source: Source | Opener
    """The test split, or what opens it."""
    tasks: tuple[str, ...]
    """What to measure on it, by the names of `task.TASKS`; `task.missing` says which of them it cannot serve.

    Where it is empty, a plan fills in `task.by_default`."""
    others: Mapping[str, Opener] = field(default_factory=dict)
    """The other splits that there are."""
    mean_per_class: bool = False
    """Whether its protocol counts the mean accuracy over classes rather than over images."""
    _opened: dict[str, Source] = field(default_factory=dict, init=False, repr=False)

    def has(self, split: str) -> bool:
        """Whether there is such a split; opens none but the test split."""
        return split == "test" or split in self.others or split == role_of(self.test)

    @property
    def test(self) -> Source:
        return self.split("test")

    def split(self, split: str) -> Source:
        """A split that there is. Raises UserError where it cannot be opened."""
        if split not in self._opened:
            opener = self.source if split == "test" else self.others.get(split, lambda: self.test)
            self._opened[split] = opener() if callable(opener) else opener
        return self._opened[split]

    def drop(self, split: str) -> None:
        """Do without a split that cannot be opened after all."""
        self.others = {other: opener for other, opener in self.others.items() if other != split}

    def close(self) -> None:
        """Let go of what was opened; the next use opens it again."""
        self._opened.clear()


def role_of(source: Source) -> str | None:
    """The split that a source is by its nature; None for plain images."""
    return source.role if isinstance(source, BenchmarkSource) else None


def offers(data: DataSet) -> frozenset[str]:
    """What a data set has for tasks: "images", "numbers" of classes, "labels" with names, "captions", "masks", splits.

    Judged by the first readable examples of the test split, which is opened; nothing where no example can be read.
    Raises UserError where the test split cannot be opened.
    """
    source = data.test
    role = role_of(source)
    if role is not None:
        return frozenset({role})
    first = first_examples(source)
    if not first:
        return frozenset()
    labels = any(example.label is not None for example in first)
    conditions = {
        "numbers": labels,
        "labels": labels and bool(source.classnames),
        "captions": any(example.captions for example in first),
        "masks": hasattr(source, "masks"),
    }
    return frozenset({"images", *data.others, *(name for name, holds in conditions.items() if holds)})


def first_examples(source: Source) -> list[Example]:
    """The first examples of a source that can be read, which tell what its examples have; [] if there are none.

    Several, as one alone may happen to lack its caption or its label.
    """
    found: list[Example] = []
    for index in range(len(source)):
        with suppress(BadImage):
            found.append(source[index])
        if len(found) == LOOKED_AT:
            break
    return found
