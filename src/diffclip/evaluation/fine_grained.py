"""Fine-grained pairs: two images that differ in one thing, and a statement for each (Tong et al. 2024).

A pair is right only if each statement picks its own of the pair's two images, which guessing does one time in
four. The score is the mean over patterns of the share of right pairs.
"""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffclip.data.sources import Example
from diffclip.errors import UserError
from diffclip.evaluation.features import ImageFeatures
from diffclip.evaluation.results import Examples

CHANCE = 0.25
SCORE = "pair_accuracy"


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


class MMVPSource:
    """The MMVP-VLM benchmark as it is published: `Questions.csv` and `MLLM_VLM Images/<type>/<id>.jpg`.

    The table has a head line and rows (id, type, statement), two rows a pair. The prompt is "a photo of " and
    the statement, as in the benchmark. Raises UserError for a folder that is not of this form.
    """

    def __init__(self, folder: Path) -> None:
        self.name = "mmvp_vlm"
        self._images = folder / "MLLM_VLM Images"
        table = folder / "Questions.csv"
        try:
            with table.open(newline="", encoding="utf-8-sig") as file:
                rows = [row for row in csv.reader(file) if row][1:]
        except OSError as error:
            raise UserError(f"cannot read {table}: {error.strerror}; expected MMVP-VLM's folder") from None
        for number, row in enumerate(rows, start=2):
            if len(row) != 3:
                raise UserError(f"{table} line {number}: expected id, type and statement, found {len(row)} columns")
        if not rows or len(rows) % 2:
            raise UserError(f"{table} has {len(rows)} statements; expected two for each pair")
        self._pairs = list(zip(rows[::2], rows[1::2], strict=True))
        for (first, pattern, _), (second, other, _) in self._pairs:
            if pattern != other:
                raise UserError(
                    f"{table}: statements {first} and {second} are a pair, but of two types, {pattern!r} and {other!r}"
                )

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> FilePair:
        one, two = self._pairs[index]
        images = self._read(one), self._read(two)
        return FilePair(one[1], images, (f"a photo of {one[2]}", f"a photo of {two[2]}"))

    def _read(self, row: Sequence[str]) -> bytes:
        path = self._images / row[1] / f"{row[0]}.jpg"
        try:
            return path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}; expected MMVP-VLM's folder") from None


class PairImages:
    """A pair source as a source of images, each with its statement: image 2 p + i is image i of pair p."""

    classnames: tuple[str, ...] | None = None
    templates: tuple[str, ...] | None = None

    def __init__(self, pairs: PairSource) -> None:
        self.name = pairs.name
        self.pairs = pairs

    def __len__(self) -> int:
        return 2 * len(self.pairs)

    def __getitem__(self, index: int) -> Example:
        pair = self.pairs[index // 2]
        return Example(pair.images[index % 2], (pair.statements[index % 2],))


def right(image_features: Tensor, text_features: Tensor) -> Tensor:
    """Which pairs are right: (P,) bool, from features (P, 2, embed_dim) of images and statements.

    Statement i must score higher with image i than with the other one; equal scores are wrong, so a model
    that sees no difference scores 0.
    """
    scores = torch.einsum("pid,ptd->pit", image_features, text_features)  # (P, images, statements)
    own, other = scores.diagonal(dim1=1, dim2=2), scores.flip(1).diagonal(dim1=1, dim2=2)
    return (own > other).all(dim=1)


def examples(pairs: PairSource, images: ImageFeatures, text_features: Tensor) -> Examples:
    """Each pair's part in `pair_accuracy`, the mean over patterns, and in `pair_accuracy/<pattern>`.

    images: of `PairImages(pairs)`; text_features (images, embed_dim): of its statements. A pair of which
    an image could not be read is left out. A pair of a pattern with n of the P pairs counts P / (n ×
    patterns).
    """
    place = {index: row for row, index in enumerate(images.indices.tolist())}
    whole = [p for p in range(len(pairs)) if 2 * p in place and 2 * p + 1 in place]
    rows = torch.tensor([[place[2 * p], place[2 * p + 1]] for p in whole])  # (P, 2)
    hits = right(images.features[rows], text_features[rows]).float()
    patterns = [pattern_name(pairs[p].pattern) for p in whole]
    counts = {pattern: patterns.count(pattern) for pattern in dict.fromkeys(patterns)}
    weights = torch.tensor([len(whole) / (counts[pattern] * len(counts)) for pattern in patterns])
    values = {SCORE: hits * weights}
    for pattern in counts:
        member = torch.tensor([other == pattern for other in patterns])
        values[f"{SCORE}/{pattern}"] = torch.where(member, hits, torch.nan)
    return Examples(torch.tensor(whole), values, dict.fromkeys(values, CHANCE))


def pattern_name(pattern: str) -> str:
    """ "Orientation and Direction" as a metric's name: orientation_and_direction."""
    return re.sub(r"\W+", "_", pattern.strip().lower())
