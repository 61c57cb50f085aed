"""Scenes as a source of examples."""

from __future__ import annotations

from random import Random

import numpy as np
from numpy.typing import NDArray

from diffclip.data.example import Example
from diffclip.data.formats.stamp import stamp_of
from diffclip.data.scenes import draw, grammar
from diffclip.data.scenes.sample import SPLITS, cluttered, sample
from diffclip.data.scenes.scene import Scene
from diffclip.data.scenes.vocabulary import CLASSNAMES, TEMPLATES
from diffclip.errors import UserError

TRAIN_LENGTH, TEST_LENGTH = 100_000, 2_000
STAMPED = 32  # scenes that are drawn to see whether drawing has changed: 8 ms
# What a training scene's three captions are drawn from. Most name colour and shape alone: a small model that reads of
# everything at once learns the colours and then, for tens of thousands of scenes, no shape.
_KINDS = ("class", "class", "class", "class", "focus", "pair", "full")


class SceneSource:
    """Drawn scenes with captions and labels; scene i of a split is a pure function of (seed, split, i).

    Args:
        split: one of `SPLITS`. "train" never shows the `HELD_OUT` classes, every other split shows them too.
        size: side of the square images, in pixels, 8 or more; a scene is the same at every size.
        length: number of scenes; None means 100,000 for "train" and 2,000 for the others.
        seed: another seed gives other scenes of the same kind.

    Attributes:
        classnames, templates: what the labels are called, for zero-shot classification.

    Raises:
        UserError: unknown split, size below 8 or length below 1.
    """

    def __init__(self, split: str = "train", size: int = 64, length: int | None = None, seed: int = 0) -> None:
        if split not in SPLITS:
            raise UserError(f"scenes has no split {split!r}: choose one of {', '.join(SPLITS)}")
        if size < 8:
            raise UserError(f"scenes cannot be drawn {size} pixels wide: give a size of 8 or more")
        if length is None:
            length = TRAIN_LENGTH if split == "train" else TEST_LENGTH
        if length < 1:
            raise UserError(f"scenes:{split} with length {length} holds nothing: give a length of 1 or more")
        self.name = "scenes" if split == "train" else f"scenes/{split}"
        self.classnames: tuple[str, ...] | None = CLASSNAMES
        self.templates: tuple[str, ...] | None = TEMPLATES
        self.split, self.size, self.length, self.seed = split, size, length, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Example:
        """Scene `index`: (size, size, 3) uint8 RGB, its captions (three in training, else two), its label."""
        scene = self.scene(index)
        random = self._random("captions", index)
        if self.split == "train":
            kinds = tuple(_KINDS[int(random.random() * len(_KINDS))] for _ in range(3))
        else:
            kinds = ("full", "full")
        return Example(draw.draw(scene, self.size), grammar.captions(scene, random, kinds), scene.label)

    def stamp(self) -> str:
        """What scenes these are, with the first ones as drawn, so that other drawing is not taken for the same."""
        examples = [self[index] for index in range(min(STAMPED, len(self)))]
        first = [(np.asarray(one.image).tobytes(), one.captions, one.label) for one in examples]
        return stamp_of([], self.split, self.size, self.length, self.seed, first)

    def scene(self, index: int) -> Scene:
        """The description that the image, the captions and the masks of `index` are made from."""
        if not 0 <= index < self.length:
            raise IndexError(f"scene {index} of {self.length}")
        return sample(self._random("scene", index), SPLITS[self.split])

    def cluttered(self, index: int) -> NDArray[np.uint8]:
        """Scene `index` among more things and bright clutter, (size, size, 3) uint8; the masks stay right."""
        more = cluttered(self._random("clutter", index), self.scene(index), SPLITS[self.split])
        return draw.draw(more, self.size)

    def masks(self, index: int) -> list[tuple[str, NDArray[np.bool_]]]:
        """What names each group of things ("a red star"), and the pixels that show it, (size, size) bool.


        No two groups of a scene have the same phrase, and no pixel belongs to two. Clutter is in no mask.
        """
        scene = self.scene(index)
        phrases = [grammar.name(group.kind, len(group.things)) for group in scene.groups]
        return list(zip(phrases, draw.masks(scene, self.size), strict=True))

    def _random(self, purpose: str, index: int) -> Random:
        return Random(f"{self.seed}/{self.split}/{index}/{purpose}")
