"""A data set by its splits, each opened when it is first needed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from diffclip.data.images import BadImage
from diffclip.data.sources import Example, Source
from diffclip.evaluation.tasks.fine_grained import PairImages

Task = Literal[
    "zero_shot",
    "retrieval",
    "linear_probe",
    "few_shot",
    "fine_grained",
    "robustness",
    "corruptions",
    "grounding",
    "noise",
]
Split = Literal["test", "train", "val", "pairs"]
Opener = Callable[[], Source]


@dataclass
class DataSet:
    """What models are tested on, and what a task may learn from first."""

    name: str
    """What results call it."""
    source: Source | Opener
    """The test split, or what opens it. Fine-grained pairs come as `PairImages`."""
    tasks: tuple[Task, ...]
    """What to measure on it; `tasks.unable` says which of them it cannot serve."""
    others: Mapping[Split, Opener] = field(default_factory=dict)
    """The other splits that there are: "train" and "val"; "pairs" where the data set has fine-grained pairs too."""
    mean_per_class: bool = False
    """Whether its protocol counts the mean accuracy over classes rather than over images."""
    _opened: dict[Split, Source] = field(default_factory=dict, init=False, repr=False)

    def has(self, split: Split) -> bool:
        """Whether there is such a split; opens none but the test split."""
        return split == "test" or split in self.others or (split == "pairs" and isinstance(self.test, PairImages))

    @property
    def test(self) -> Source:
        return self.split("test")

    def split(self, split: Split) -> Source:
        """A split that there is. Raises UserError where it cannot be opened."""
        if split not in self._opened:
            opener = self.source if split == "test" else self.others.get(split, lambda: self.test)
            self._opened[split] = opener() if callable(opener) else opener
        return self._opened[split]

    def drop(self, split: Split) -> None:
        """Do without a split that cannot be opened after all."""
        self.others = {other: opener for other, opener in self.others.items() if other != split}

    def close(self) -> None:
        """Let go of what was opened; the next use opens it again."""
        self._opened.clear()


def first_readable(source: Source) -> Example | None:
    """The first example of a source that can be read, which tells what its examples have; None if there is none."""
    for index in range(len(source)):
        try:
            return source[index]
        except BadImage:
            continue
    return None
