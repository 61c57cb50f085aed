"""Random scenes: one setting for each split, one random stream for each scene.

A stream is Python's `random.Random` seeded by a string: it costs 4 µs to seed, and its `random()`, the only
method used, is the same in every Python version.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from typing import NamedTuple, TypeVar

from diffclip.data.scenes.draw import ink
from diffclip.data.scenes.scene import Background, Bit, Group, Scene, Thing
from diffclip.data.scenes.vocabulary import (
    BACKGROUND_LEVELS,
    BACKGROUND_TEXTURES,
    CLASSES,
    COLOURS,
    DIRECTIONS,
    LETTERS,
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
    radius: tuple[float, float] = (0.19, 0.27)  # of the labelled thing
    spread: float = 0.1  # how far from the middle it may lie, each way
    several: float = 0.12  # share of scenes with two to four labelled things
    others: tuple[int, int] = (0, 2)  # further groups
    other_radius: tuple[float, float] = (0.085, 0.125)
    lookalikes: bool = False  # further groups share the colour or the shape of the labelled one
    bits: tuple[int, int] = (0, 5)
    bright_bits: bool = False  # clutter in the objects' own colours
    plain: bool = False  # no textures, no clutter
    busy: bool = False  # every background textured
    styles: tuple[str, ...] = ("flat",)


SPLITS: dict[str, Setting] = {
    "train": Setting(held_out=False),
    "test": Setting(),
    "test_v2": Setting(radius=(0.14, 0.2), spread=0.25, several=0.3, others=(1, 3), bits=(2, 7)),
    "test_rendition": Setting(styles=("pastel", "pixelated", "watercolour", "shaded")),
    "test_sketch": Setting(plain=True, styles=("sketch",)),
    "test_adversarial": Setting(
        radius=(0.15, 0.21), others=(3, 3), lookalikes=True, bits=(8, 12), bright_bits=True, busy=True
    ),
}

# Shapes whose turn carries no meaning may lie at any angle; the rest stay near upright.
_TURNS = {"heart": 20.0, "bolt": 15.0, "box": 6.0, "triangle": 25.0, "moon": 40.0, SIGN: 5.0}
SOLID_MIDDLE = ("circle", "square", "triangle", "star", "heart", "hexagon")  # those that can wear a dot
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
        number = 1 if shape_ == SIGN or random.random() < 0.7 else whole(random, (2, 3))
        radius = (0.12, 0.15) if shape_ == SIGN else setting.other_radius
        if number > 1:
            radius = (0.075, 0.09)
        things = _group(random, setting, colour, shape_, radius, number, placed)
        if things:
            groups.append(Group(things))
            placed += things
    background = _background(random, setting, [group.kind.colour for group in groups])
    bits: tuple[Bit, ...] = ()
    if not setting.plain:
        number = whole(random, setting.bits)
        bits = tuple(_bit(random, background.rgb, setting.bright_bits) for _ in range(number))
    return Scene(tuple(groups), bits, background, style, label)


def _labels(setting: Setting) -> Sequence[int]:
    return range(len(CLASSES)) if setting.held_out else SEEN


def _other(random: Random, setting: Setting, main: tuple[str, str], index: int) -> tuple[str, str]:
    """Colour and shape of a further group: never both the labelled ones, no held-out pair in training."""
    if not setting.lookalikes and random.random() < 0.12:
        return pick(random, tuple(COLOURS)), SIGN
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
    rgb = _jitter(random, COLOURS[colour])
    texture = "solid"
    textured = 0.0 if setting.plain or shape in ("box", SIGN) else 0.5 if radius > 0.13 else 0.25
    if random.random() < textured:
        texture = pick(random, TEXTURES[1:] if shape in SOLID_MIDDLE else TEXTURES[1:-1])  # no thin outlined shapes
    second = ink(rgb) if texture == "outlined" else partner(rgb)
    letter = pick(random, LETTERS) if shape == SIGN else ""
    if shape == "arrow":
        angle, turn = pick(random, tuple(DIRECTIONS.values())), 12.0
    else:
        angle, turn = 0.0, _TURNS.get(shape, 180.0)
    broken = shape not in ("box", SIGN) and texture == "solid" and random.random() < 0.15
    dot = not broken and shape in SOLID_MIDDLE and texture == "solid" and random.random() < 0.3
    is_open = shape == "box" and random.random() < 0.5
    above = shape == "box" and random.random() < 0.5
    things: tuple[Thing, ...] = ()
    for _ in range(count):
        where = _place(random, setting, radius, placed, first=not placed and count == 1)
        if where is None:
            break
        tilt = angle + turn * (2 * random.random() - 1)
        x, y = where
        thing = Thing(shape, colour, rgb, second, texture, x, y, radius, tilt, dot, broken, is_open, above, letter)
        things += (thing,)
        placed += (thing,)
    return things


def _place(
    random: Random, setting: Setting, radius: float, placed: tuple[Thing, ...], first: bool
) -> tuple[float, float] | None:
    edge = radius + _MARGIN
    if first:
        low, high = max(0.5 - setting.spread, edge), min(0.5 + setting.spread, 1 - edge)
        return between(random, (low, high)), between(random, (low, high))
    for _ in range(24):
        x, y = between(random, (edge, 1 - edge)), between(random, (edge, 1 - edge))
        if all(math.hypot(x - thing.x, y - thing.y) > 0.95 * (radius + thing.radius) for thing in placed):
            return x, y
    return None


def _jitter(random: Random, rgb: RGB, by: float = 12.0) -> RGB:
    red, green, blue = (min(max(round(level + by * (2 * random.random() - 1)), 0), 255) for level in rgb)
    return red, green, blue


def partner(rgb: RGB) -> RGB:
    """The second colour of a texture: half as bright; light grey on white, and dark grey on black."""
    if luminance(rgb) < 50:
        return (64, 64, 70)
    share = 0.77 if luminance(rgb) > 225 else 0.5
    red, green, blue = (round(share * level) for level in rgb)
    return red, green, blue


def _background(random: Random, setting: Setting, colours: list[str]) -> Background:
    levels = [
        level
        for level in BACKGROUND_LEVELS
        if not (level == "light" and ("white" in colours or "yellow" in colours))
        and not (level == "dark" and "black" in colours)
    ]
    level = pick(random, levels)
    grey = BACKGROUND_LEVELS[level]
    texture = "plain" if setting.plain else pick(random, BACKGROUND_TEXTURES[setting.busy :])
    grey += round(between(random, (-12.0, 12.0)))
    rgb = _jitter(random, (grey, grey, grey), 9.0)
    contrast = between(random, (28.0, 44.0))
    period, angle = between(random, (0.14, 0.24)), 180 * random.random()
    grid: tuple[float, ...] = ()
    if texture == "cloudy":
        grid = tuple(2 * random.random() - 1 for _ in range(25))
    return Background(level, texture, rgb, contrast, period, angle, grid)


def _bit(random: Random, ground: RGB, bright: bool) -> Bit:
    if bright:
        rgb = pick(random, tuple(COLOURS.values()))
        length, width = between(random, (0.0, 0.12)), between(random, (0.02, 0.045))
    else:
        rgb = _jitter(random, ground, 60.0)
        length, width = between(random, (0.0, 0.2)), between(random, (0.015, 0.035))
    return Bit(rgb, random.random(), random.random(), length, width, 180 * random.random())
