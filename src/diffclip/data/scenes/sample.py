"""Random scenes: a setting for each split, a random stream for each scene.

A stream is Python's `random.Random` seeded by a string: it costs 4 µs to seed, and its `random()`, the only
method used, is the same in every Python version.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from typing import NamedTuple, TypeVar

from diffclip.data.scenes.draw import INK
from diffclip.data.scenes.scene import Background, Bit, Group, Scene, Thing
from diffclip.data.scenes.vocabulary import (
    ARROW,
    BOX,
    CLASSES,
    COLOURS,
    DIRECTIONS,
    GROUND_TEXTURES,
    GROUNDS,
    LETTERS,
    PROPS,
    RGB,
    SEEN,
    SIGN,
    TEXTURES,
    luminance,
)

T = TypeVar("T")


class Setting(NamedTuple):
    """What scenes of a split are like. Lengths are fractions of the frame, pairs are ranges."""

    held_out: bool = True  # may combine colour and shape as training never does
    radius: tuple[float, float] = (0.21, 0.28)  # of the labelled thing
    spread: float = 0.07  # how far from the middle it may lie, each way
    several: float = 0.05  # share of scenes with two to four labelled things
    others: tuple[int, int] = (0, 2)  # further groups
    other_radius: tuple[float, float] = (0.085, 0.125)
    props: float = 0.4  # share of further groups that are an arrow, a box or a sign
    lookalikes: bool = False  # further groups share the colour or the shape of the labelled one
    bits: tuple[int, int] = (0, 5)
    bright_bits: bool = False  # clutter in the objects' own colours
    plain: bool = False  # no textures, no clutter
    busy: bool = False  # every background textured
    grounds: tuple[str, ...] = ("black", "grey")
    styles: tuple[str, ...] = ("flat",)


SPLITS: dict[str, Setting] = {
    "train": Setting(held_out=False),
    "test": Setting(),
    "test_v2": Setting(
        radius=(0.18, 0.25), spread=0.12, several=0.1, others=(1, 2), bits=(2, 7), grounds=tuple(GROUNDS)
    ),
    "test_rendition": Setting(styles=("pastel", "pixelated", "watercolour", "shaded")),
    "test_sketch": Setting(plain=True, styles=("sketch",)),
    "test_adversarial": Setting(
        radius=(0.19, 0.25), others=(3, 3), props=0.0, lookalikes=True, bits=(8, 12), bright_bits=True, busy=True
    ),
}

# How far a shape may be turned either way; those not named look alike at any angle.
_TURNS = dict.fromkeys(("square", "triangle", "star", "heart", "cross", "moon", "bolt", ARROW), 10.0) | {
    BOX: 6.0,
    SIGN: 5.0,
}
MORE_THINGS, MORE_BITS = 3, 12  # what `cluttered` adds
SOLID_MIDDLE = ("circle", "square", "triangle", "star", "heart")  # those that can wear a dot or an outline
_MARGIN = 0.015


def pick(random: Random, options: Sequence[T]) -> T:
    return options[int(random.random() * len(options))]


def between(random: Random, ends: tuple[float, float]) -> float:
    return ends[0] + (ends[1] - ends[0]) * random.random()


def whole(random: Random, ends: tuple[int, int]) -> int:
    """A whole number, both ends included."""
    return ends[0] + int(random.random() * (ends[1] - ends[0] + 1))


def sample(random: Random, setting: Setting, shape: str | None = None) -> Scene:
    """One random scene; its labelled thing is a `shape` where one is given."""
    labels = [label for label in _labels(setting) if shape in (None, CLASSES[label][1])]
    label = pick(random, labels)
    style = pick(random, setting.styles)
    many = random.random() < setting.several
    count = whole(random, (2, 4)) if many else 1
    things = _group(random, setting, *CLASSES[label], (0.12, 0.15) if many else setting.radius, count, ())
    groups = [Group(things)]
    placed = things
    for index in range(whole(random, setting.others)):
        colour, shape_ = _other(random, setting, CLASSES[label], index)
        if any(group.kind.colour == colour and group.kind.shape == shape_ for group in groups):
            continue
        number, radius = 1, setting.other_radius
        if shape_ in PROPS:
            radius = (0.13, 0.16)
        elif random.random() < 0.3:
            number, radius = whole(random, (2, 3)), (0.075, 0.09)
        things = _group(random, setting, colour, shape_, radius, number, placed)
        if things:
            groups.append(Group(things))
            placed += things
    background = _background(random, setting)
    bits: tuple[Bit, ...] = ()
    if not setting.plain:
        number = whole(random, setting.bits)
        bits = tuple(_bit(random, background.rgb, setting.bright_bits) for _ in range(number))
    return Scene(tuple(groups), bits, background, style, label)


def cluttered(random: Random, scene: Scene, setting: Setting) -> Scene:
    """The same scene with more in it: up to `MORE_THINGS` further small things and `MORE_BITS` bits in bright colours.

    What was there stays where it was and as visible: new things keep clear of it, and bits lie behind all things.
    """
    groups = list(scene.groups)
    placed = tuple(thing for group in groups for thing in group.things)
    for index in range(MORE_THINGS):
        colour, shape = _other(random, setting, CLASSES[scene.label], index)
        if any(group.kind.colour == colour and group.kind.shape == shape for group in groups):
            continue
        things = _group(random, setting, colour, shape, setting.other_radius, 1, placed)
        if things:
            groups.append(Group(things))
            placed += things
    bits = tuple(_bit(random, scene.background.rgb, bright=True) for _ in range(MORE_BITS))
    return scene._replace(groups=tuple(groups), bits=scene.bits + bits)


def _labels(setting: Setting) -> Sequence[int]:
    return range(len(CLASSES)) if setting.held_out else SEEN


def _other(random: Random, setting: Setting, main: tuple[str, str], index: int) -> tuple[str, str]:
    """Colour and shape of a further group: never both the labelled ones, no held-out pair in training."""
    if random.random() < setting.props:
        return pick(random, tuple(COLOURS)), pick(random, PROPS)
    while True:
        pair = CLASSES[pick(random, _labels(setting))]
        if setting.lookalikes and pair[index % 2] != main[index % 2]:
            continue
        if pair != main:
            return pair


def _group(
    random: Random,
    setting: Setting,
    colour: str,
    shape: str,
    radii: tuple[float, float],
    count: int,
    placed: tuple[Thing, ...],
) -> tuple[Thing, ...]:
    """Up to `count` equal things clear of those placed; none if there is no room."""
    radius = between(random, radii)
    look = _look(random, setting, colour, shape, radius)
    turn = _TURNS.get(shape, 180.0)
    things: tuple[Thing, ...] = ()
    for _ in range(count):
        where = _place(random, setting, radius, placed, first=not placed and count == 1)
        if where is None:
            break
        angle = look.angle + turn * (2 * random.random() - 1)
        thing = look._replace(x=where[0], y=where[1], angle=angle)
        things += (thing,)
        placed += (thing,)
    return things


def _look(random: Random, setting: Setting, colour: str, shape: str, radius: float) -> Thing:
    """What the things of a group have in common, at no place yet."""
    rgb = _jitter(random, COLOURS[colour])
    texture = "solid"
    textured = 0.0 if setting.plain or shape in PROPS else 0.5 if radius > 0.13 else 0.25
    if random.random() < textured:
        texture = pick(random, TEXTURES[1:] if shape in SOLID_MIDDLE else TEXTURES[1:-1])  # no thin outlined shapes
    angle = 0.0
    if shape == ARROW:
        angle = pick(random, tuple(DIRECTIONS.values()))
    elif shape == "moon":
        angle = 180.0 * (random.random() < 0.5)
    plain = texture == "solid" and shape not in PROPS
    broken = plain and random.random() < 0.15
    dot = plain and not broken and shape in SOLID_MIDDLE and random.random() < 0.3
    return Thing(
        shape,
        colour,
        rgb,
        INK if texture == "outlined" else partner(rgb, 0.95, 0.5) if dot else partner(rgb),
        texture,
        x=0.0,
        y=0.0,
        radius=radius,
        angle=angle,
        dot=dot,
        broken=broken,
        open=shape == BOX and random.random() < 0.5,
        above=shape == BOX and random.random() < 0.5,
        letter=pick(random, LETTERS) if shape == SIGN else "",
    )


def _place(
    random: Random, setting: Setting, radius: float, placed: tuple[Thing, ...], first: bool
) -> tuple[float, float] | None:
    edge = radius + _MARGIN
    if first:
        low, high = max(0.5 - setting.spread, edge), min(0.5 + setting.spread, 1 - edge)
        return between(random, (low, high)), between(random, (low, high))
    for _ in range(24):
        x, y = between(random, (edge, 1 - edge)), between(random, (edge, 1 - edge))
        if clear(x, y, radius, placed):
            return x, y
    return None


def clear(x: float, y: float, radius: float, placed: tuple[Thing, ...]) -> bool:
    """Whether a thing at (x, y) lies in the frame and hides next to nothing of those placed."""
    edge = radius + _MARGIN
    return min(x, y, 1 - x, 1 - y) >= edge and all(
        math.hypot(x - thing.x, y - thing.y) > 0.95 * (radius + thing.radius) for thing in placed
    )


def _jitter(random: Random, rgb: RGB, by: float = 12.0) -> RGB:
    red, green, blue = (min(max(round(level + by * (2 * random.random() - 1)), 0), 255) for level in rgb)
    return red, green, blue


def partner(rgb: RGB, lighten: float = 0.6, darken: float = 0.36) -> RGB:
    """A texture's second colour: the first one lighter, or darker where it is light already."""
    goal, share = (255, lighten) if luminance(rgb) < 140 else (0, darken)
    red, green, blue = (round(level + share * (goal - level)) for level in rgb)
    return red, green, blue


def _background(random: Random, setting: Setting) -> Background:
    ground = pick(random, setting.grounds)
    texture = "plain" if setting.plain else pick(random, GROUND_TEXTURES[setting.busy :])
    rgb = _jitter(random, GROUNDS[ground], 4.0)
    contrast = between(random, (18.0, 30.0))
    period, angle = between(random, (0.14, 0.24)), 180 * random.random()
    grid: tuple[float, ...] = ()
    if texture == "cloudy":
        grid = tuple(2 * random.random() - 1 for _ in range(25))
    return Background(ground, texture, rgb, contrast, period, angle, grid)


def _bit(random: Random, ground: RGB, bright: bool) -> Bit:
    if bright:
        rgb = pick(random, tuple(COLOURS.values()))
        length, width = between(random, (0.0, 0.12)), between(random, (0.02, 0.045))
    else:
        rgb = _jitter(random, ground, 36.0)
        length, width = between(random, (0.0, 0.2)), between(random, (0.015, 0.035))
    return Bit(rgb, random.random(), random.random(), length, width, 180 * random.random())
