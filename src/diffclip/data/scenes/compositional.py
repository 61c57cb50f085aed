"""Scenes that ask whether a model reads who has what: hard negative captions, and pairs with the same words.

The drawn counterparts of SugarCrepe (Hsieh et al. 2023) and of Winoground (Thrush et al. 2022). Every statement is a
caption in the words of the training captions, and every wrong one is false of the whole scene.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from diffclip.data.example import Example
from diffclip.data.formats.stamp import stamp_of
from diffclip.data.scenes import grammar
from diffclip.data.scenes.draw import draw
from diffclip.data.scenes.finegrained import Pair
from diffclip.data.scenes.sample import Setting, clear, partner, pick, sample
from diffclip.data.scenes.scene import Group, Scene, Thing
from diffclip.data.scenes.vocabulary import CLASS_INDEX, CLASSES, COLOURS, SEEN, SHAPES, TEXTURES
from diffclip.errors import UserError

# Two things at least, none held out, none that training never labels.
_TWO_THINGS = Setting(held_out=False, several=0.0, others=(1, 2), props=0.0)

_Captions = tuple[str, str]
_Swap = tuple[Scene, Scene, tuple[str, str]]


class NegativeSource:
    """Scenes with a true caption and, second, one that is false: `count` of each of `KINDS`, one kind after the other.

    Example i depends on (seed, i) alone. Raises UserError for a count below 1 or a size below 8.
    """

    classnames: tuple[str, ...] | None = None
    templates: tuple[str, ...] | None = None
    role = "negatives"

    def __init__(self, count: int = 50, size: int = 64, seed: int = 0) -> None:
        _check(count, size)
        self.name = "scenes/negatives"
        self.count, self.size, self.seed = count, size, seed
        self.kinds = tuple(kind for kind in KINDS for _ in range(count))
        """The kind of each example."""

    def __len__(self) -> int:
        return len(self.kinds)

    def __getitem__(self, index: int) -> Example:
        """The scene, (size, size, 3) uint8, with its caption and the hard negative."""
        scene, captions = self.scene(index)
        return Example(draw(scene, self.size), captions)

    def scene(self, index: int) -> tuple[Scene, tuple[str, str]]:
        """The description of scene `index`, its caption and the hard negative."""
        random = Random(f"{self.seed}/negatives/{self.kinds[index]}/{index % self.count}")
        while True:  # most scenes have nothing that a kind can change
            scene = sample(random, _TWO_THINGS)
            captions = KINDS[self.kinds[index]](random, scene) if _is_plain(scene) else None
            if captions:
                return scene, captions

    def stamp(self) -> str:
        """What scenes these are, with the first of each kind as drawn."""
        first = [self[index] for index in range(0, len(self), self.count)]
        drawn = [(bytes(example.image), example.captions) for example in first]
        return stamp_of([], self.count, self.size, self.seed, drawn)


class SwapSource:
    """Pairs of scenes whose statements have the same words: `count` of each of `SWAPS`, one kind after the other.

    Pair i depends on (seed, i) alone. Raises UserError for a count below 1 or a size below 8.
    """

    def __init__(self, count: int = 100, size: int = 64, seed: int = 0) -> None:
        _check(count, size)
        self.name = "scenes/swaps"
        self.count, self.size, self.seed = count, size, seed
        self.patterns = tuple(kind for kind in SWAPS for _ in range(count))
        """What is swapped in each pair."""

    def __len__(self) -> int:
        return len(self.patterns)

    def __getitem__(self, index: int) -> Pair:
        kind = self.patterns[index]
        random = Random(f"{self.seed}/swaps/{kind}/{index % self.count}")
        while True:
            scene = sample(random, _TWO_THINGS)
            swap = SWAPS[kind](scene) if _is_plain(scene) else None
            if swap:
                break
        one, other, statements = swap
        return Pair(kind, (draw(one, self.size), draw(other, self.size)), statements, (one, other))

    def stamp(self) -> str:
        """What pairs these are, with the first of each kind as drawn."""
        first = [self[index] for index in range(0, len(self), self.count)]
        drawn = [(pair.images[1].tobytes(), pair.statements) for pair in first]
        return stamp_of([], self.count, self.size, self.seed, drawn)


def _check(count: int, size: int) -> None:
    if count < 1 or size < 8:
        raise UserError(f"no scenes with count {count} and size {size}: give a count of 1 and a size of 8 or more")


def _is_plain(scene: Scene) -> bool:
    """Whether the first two groups are single things of one colour each."""
    return len(scene.groups) > 1 and all(
        len(group.things) == 1 and group.kind.texture == "solid" and not group.kind.dot for group in scene.groups[:2]
    )


def _first_two(scene: Scene) -> tuple[Thing, Thing]:
    return scene.groups[0].kind, scene.groups[1].kind


def _is_absent(scene: Scene, colour: str, shape: str) -> bool:
    """Whether training shows this combination, and this scene does not."""
    there = {(group.kind.colour, group.kind.shape) for group in scene.groups}
    return CLASS_INDEX[colour, shape] in SEEN and (colour, shape) not in there


def _both(a: Thing, b: Thing) -> str:
    return f"{grammar.name(a)} and {grammar.name(b)}"


def _related(a: Thing, how: str, b: Thing) -> str:
    return f"{grammar.name(a)} {how} {grammar.name(b)}"


def _replace_obj(random: Random, scene: Scene) -> _Captions | None:
    main, other = _first_two(scene)
    shape = pick(random, SHAPES)
    if not _is_absent(scene, main.colour, shape):
        return None
    return _both(main, other), _both(main._replace(shape=shape), other)


def _replace_att(random: Random, scene: Scene) -> _Captions | None:
    main, other = _first_two(scene)
    colour = pick(random, tuple(COLOURS))
    if not _is_absent(scene, colour, main.shape):
        return None
    return _both(main, other), _both(main._replace(colour=colour), other)


def _replace_rel(random: Random, scene: Scene) -> _Captions | None:
    main, other = _first_two(scene)
    how = grammar.relation(*scene.groups[:2])
    return (_related(main, how, other), _related(main, grammar.OPPOSITE[how], other)) if how else None


def _swap_obj(random: Random, scene: Scene) -> _Captions | None:
    main, other = _first_two(scene)
    how = grammar.relation(*scene.groups[:2])
    return (_related(main, how, other), _related(other, how, main)) if how else None


def _swap_att(random: Random, scene: Scene) -> _Captions | None:
    main, other = _first_two(scene)
    one, two = main._replace(colour=other.colour), other._replace(colour=main.colour)
    if not all(_is_absent(scene, kind.colour, kind.shape) for kind in (one, two)):
        return None
    return _both(main, other), _both(one, two)


def _add_obj(random: Random, scene: Scene) -> _Captions | None:
    main = scene.groups[0].kind
    colour, shape = CLASSES[pick(random, SEEN)]
    if not _is_absent(scene, colour, shape):
        return None
    return grammar.name(main), _both(main, main._replace(colour=colour, shape=shape))


def _add_att(random: Random, scene: Scene) -> _Captions | None:
    main = scene.groups[0].kind
    return grammar.name(main), grammar.name(main._replace(texture=pick(random, TEXTURES[1:-1])), 1, ("texture",))


KINDS: dict[str, Callable[[Random, Scene], _Captions | None]] = {
    "replace_obj": _replace_obj,
    "replace_att": _replace_att,
    "replace_rel": _replace_rel,
    "swap_obj": _swap_obj,
    "swap_att": _swap_att,
    "add_obj": _add_obj,
    "add_att": _add_att,
}
"""SugarCrepe's kinds of hard negatives: what is done to the caption, and to the name of what."""


def _with_first_two(scene: Scene, one: Thing, two: Thing) -> Scene:
    return scene._replace(groups=(Group((one,)), Group((two,)), *scene.groups[2:]))


def _swap_places(scene: Scene) -> _Swap | None:
    """The second thing lies on the other side of the first one: what was left of it is right of it."""
    main, other = _first_two(scene)
    how = grammar.relation(*scene.groups[:2])
    x, y = (2 * main.x - other.x, other.y) if how in ("left of", "right of") else (other.x, 2 * main.y - other.y)
    rest = tuple(thing for group in scene.groups[2:] for thing in group.things)
    if how is None or not clear(x, y, other.radius, (main, *rest)):
        return None
    moved = _with_first_two(scene, main, other._replace(x=x, y=y))
    return scene, moved, (_related(main, how, other), _related(other, how, main))


def _swap_colours(scene: Scene) -> _Swap | None:
    main, other = _first_two(scene)
    one, two = _painted(main, other.colour), _painted(other, main.colour)
    if not all(_is_absent(scene, kind.colour, kind.shape) for kind in (one, two)):
        return None
    return scene, _with_first_two(scene, one, two), (_both(main, other), _both(one, two))


def _painted(kind: Thing, colour: str) -> Thing:
    return kind._replace(colour=colour, rgb=COLOURS[colour], second=partner(COLOURS[colour]))


SWAPS: dict[str, Callable[[Scene], _Swap | None]] = {"Place": _swap_places, "Colour": _swap_colours}
"""What two statements with the same words differ in."""
