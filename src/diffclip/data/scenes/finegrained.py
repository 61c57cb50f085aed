"""Pairs of scenes that differ in one thing, for the nine patterns in which MMVP-VLM found CLIPs blind.

Each pair is a scene, the same scene with one thing changed, and for each a statement that is false of the other.
Everything else, down to the pixels, is equal. Statements are whole captions in the words of the training captions:
no prompt goes before them. The patterns are those of Tong et al. 2024, "Eyes Wide Shut?".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

from diffclip.data.formats.stamp import stamp_of
from diffclip.data.scenes import grammar
from diffclip.data.scenes.draw import draw
from diffclip.data.scenes.sample import Setting, clear, partner, pick, sample
from diffclip.data.scenes.scene import Group, Scene, Thing
from diffclip.data.scenes.vocabulary import (
    ARROW,
    BOX,
    CLASS_INDEX,
    COLOURS,
    DIRECTIONS,
    LETTERS,
    SEEN,
    SHAPES,
    SIGN,
    TEXTURES,
)
from diffclip.errors import UserError

_Edit = tuple[Scene, Scene, tuple[str, str]]
_WITH_PROPS = Setting(held_out=False, several=0.0, others=(1, 2), props=0.8)
_PLAIN = Setting(held_out=False, several=0.0)
_COUNTED = Setting(held_out=False, several=0.5, others=(1, 2), props=0.0)


@dataclass(frozen=True)
class Pair:
    """Two scenes that differ in one thing: images (size, size, 3) uint8, and a statement true of its own only."""

    pattern: str
    images: tuple[NDArray[np.uint8], NDArray[np.uint8]]
    statements: tuple[str, str]
    scenes: tuple[Scene, Scene]


class FineGrainedSource:
    """`count` pairs of each of the nine patterns, one pattern after the other; pair i depends on (seed, i) only.

    Raises:
        UserError: count below 1, or size below 8.
    """

    def __init__(self, count: int = 50, size: int = 64, seed: int = 0) -> None:
        if count < 1 or size < 8:
            raise UserError(
                f"no fine-grained scenes with count {count} and size {size}: give a count of 1 and a size of 8 or more"
            )
        self.name = "scenes/finegrained"
        self.count, self.size, self.seed = count, size, seed

    def __len__(self) -> int:
        return self.count * len(PATTERNS)

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        return _pair(PATTERNS[index // self.count], index % self.count, self.size, self.seed)

    def stamp(self) -> str:
        """As of `SceneSource`: what pairs these are, with the first of each pattern as drawn."""
        pairs = [self[index] for index in range(0, len(self), self.count)]
        first = [(pair.images[1].tobytes(), pair.statements) for pair in pairs]
        return stamp_of([], self.count, self.size, self.seed, first)


def finegrained_pairs(pattern: str, count: int, size: int = 64, seed: int = 0) -> list[Pair]:
    """The first `count` pairs of one of `PATTERNS`.

    Raises:
        UserError: unknown pattern.
    """
    if pattern not in _EDITS:
        raise UserError(f"scenes has no pattern {pattern!r}: choose one of {', '.join(PATTERNS)}")
    return [_pair(pattern, index, size, seed) for index in range(count)]


def _pair(pattern: str, index: int, size: int, seed: int) -> Pair:
    random = Random(f"{seed}/finegrained/{pattern}/{index}")
    setting, edit = _EDITS[pattern]
    while (edited := edit(random, sample(random, setting))) is None:
        pass  # most scenes have nothing that this pattern can change
    one, two, statements = edited
    if random.random() < 0.5:
        one, two, statements = two, one, statements[::-1]
    return Pair(pattern, (draw(one, size), draw(two, size)), statements, (one, two))


def _change(scene: Scene, index: int, said: tuple[str, ...], **fields: object) -> _Edit:
    """The scene, and the scene with those fields of its group `index`, a single thing, changed."""
    kind = scene.groups[index].kind
    changed = kind._replace(**fields)  # type: ignore[arg-type]
    return scene, _with(scene, index, (changed,)), (grammar.name(kind, 1, said), grammar.name(changed, 1, said))


def _with(scene: Scene, index: int, things: tuple[Thing, ...]) -> Scene:
    groups = (*scene.groups[:index], Group(things), *scene.groups[index + 1 :])
    return scene._replace(groups=groups)


def _find(scene: Scene, *shapes: str) -> int | None:
    """The first group of a single thing of one of these shapes."""
    for index, group in enumerate(scene.groups):
        if group.kind.shape in shapes and len(group.things) == 1:
            return index
    return None


def _orientation(random: Random, scene: Scene) -> _Edit | None:
    index = _find(scene, ARROW, "moon")
    if index is None:
        return None
    kind = scene.groups[index].kind
    if kind.shape == "moon":
        return _change(scene, index, ("pose",), angle=kind.angle + 180)
    turn = pick(random, tuple(DIRECTIONS.values())[1:])
    return _change(scene, index, ("pose",), angle=kind.angle + turn)


def _feature(random: Random, scene: Scene) -> _Edit | None:
    kind = scene.groups[0].kind
    if not kind.dot:
        return None
    return _change(scene, 0, ("dot",), dot=False)


def _state(random: Random, scene: Scene) -> _Edit | None:
    index = _find(scene, BOX)
    if index is not None and random.random() < 0.5:
        return _change(scene, index, ("condition",), open=not scene.groups[index].kind.open)
    return _change(scene, 0, ("condition",), broken=False) if scene.groups[0].kind.broken else None


def _count(random: Random, scene: Scene) -> _Edit | None:
    for index, group in enumerate(scene.groups):
        count = len(group.things)
        if count > 1:
            fewer = _with(scene, index, group.things[:-1])
            return scene, fewer, (grammar.name(group.kind, count), grammar.name(group.kind, count - 1))
    return None


def _position(random: Random, scene: Scene) -> _Edit | None:
    """Move the second thing to the other side of the first one."""
    scene = scene._replace(groups=scene.groups[:2])
    if len(scene.groups) < 2 or len(scene.groups[1].things) > 1:
        return None
    main, other = (group.kind for group in scene.groups)
    how = grammar.relation(*scene.groups)
    x, y = (2 * main.x - other.x, other.y) if how in ("left of", "right of") else (other.x, 2 * main.y - other.y)
    if how is None or not clear(x, y, other.radius, (main,)):
        return None
    moved = _with(scene, 1, (other._replace(x=x, y=y),))
    opposite = grammar.OPPOSITE[how]
    if random.random() < 0.5:
        return scene, moved, (_related(main, how, other), _related(main, opposite, other))
    return scene, moved, (_related(other, opposite, main), _related(other, how, main))


def _related(a: Thing, how: str, b: Thing) -> str:
    return f"{grammar.name(a)} {how} {grammar.name(b)}"


def _colour(random: Random, scene: Scene) -> _Edit | None:
    kind = scene.groups[0].kind
    colour = pick(random, tuple(COLOURS))
    if not _is_new(scene, colour, kind.shape) or kind.texture != "solid" or kind.dot:
        return None
    rgb = COLOURS[colour]
    return _change(scene, 0, (), colour=colour, rgb=rgb, second=partner(rgb))


def _structure(random: Random, scene: Scene) -> _Edit | None:
    kind = scene.groups[0].kind
    if kind.texture in TEXTURES[1:-1]:
        texture = pick(random, TEXTURES[1:-1])
        return _change(scene, 0, ("texture",), texture=texture) if texture != kind.texture else None
    shape = pick(random, SHAPES)
    if kind.texture != "solid" or kind.broken or kind.dot or not _is_new(scene, kind.colour, shape):
        return None
    scene = _with(scene, 0, (kind._replace(angle=0.0),))  # upright, whatever the shape
    return _change(scene, 0, (), shape=shape)


def _is_new(scene: Scene, colour: str, shape: str) -> bool:
    """Whether training shows this combination, and this scene does not."""
    there = {(group.kind.colour, group.kind.shape) for group in scene.groups}
    return CLASS_INDEX[colour, shape] in SEEN and (colour, shape) not in there


def _text(random: Random, scene: Scene) -> _Edit | None:
    index = _find(scene, SIGN)
    if index is None:
        return None
    letter = pick(random, [letter for letter in LETTERS if letter != scene.groups[index].kind.letter])
    return _change(scene, index, ("pose",), letter=letter)


def _viewpoint(random: Random, scene: Scene) -> _Edit | None:
    index = _find(scene, BOX)
    return None if index is None else _change(scene, index, ("pose",), above=not scene.groups[index].kind.above)


_EDITS: dict[str, tuple[Setting, Callable[[Random, Scene], _Edit | None]]] = {
    "Orientation and Direction": (_WITH_PROPS, _orientation),
    "Presence of Specific Features": (_PLAIN, _feature),
    "State and Condition": (_WITH_PROPS, _state),
    "Quantity and Count": (_COUNTED, _count),
    "Positional and Relational Context": (_PLAIN, _position),
    "Color and Appearance": (_PLAIN, _colour),
    "Structural and Physical Characteristics": (_PLAIN, _structure),
    "Text": (_WITH_PROPS, _text),
    "Viewpoint and Perspective": (_WITH_PROPS, _viewpoint),
}
PATTERNS: tuple[str, ...] = tuple(_EDITS)
