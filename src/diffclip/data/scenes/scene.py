"""The description of a scene, from which picture, captions and masks are made.

Lengths and positions are fractions of the frame's side, x to the right and y downwards; angles are degrees,
clockwise. So one description is the same picture at every size.
"""

from __future__ import annotations

from typing import NamedTuple

from diffclip.data.scenes.vocabulary import RGB


class Thing(NamedTuple):
    """One drawn object."""

    shape: str
    colour: str
    rgb: RGB
    second: RGB  # of its texture, or of its dot
    texture: str
    x: float
    y: float
    radius: float  # of the circle around it
    angle: float
    dot: bool = False  # has a dot in its middle
    broken: bool = False  # a crack runs through it
    open: bool = False  # boxes only
    above: bool = False  # boxes only: seen from above, not from the side
    letter: str = ""  # signs only


class Group(NamedTuple):
    """Equal things that a caption counts: "three small blue circles". Most groups hold one thing."""

    things: tuple[Thing, ...]

    @property
    def kind(self) -> Thing:
        return self.things[0]

    @property
    def centre(self) -> tuple[float, float]:
        count = len(self.things)
        return sum(thing.x for thing in self.things) / count, sum(thing.y for thing in self.things) / count


class Bit(NamedTuple):
    """A piece of clutter: a rounded dash (or, of no length, a speck) that no caption mentions."""

    rgb: RGB
    x: float
    y: float
    length: float
    width: float
    angle: float


class Background(NamedTuple):
    ground: str
    texture: str
    rgb: RGB
    contrast: float  # how much the texture's other half is brighter, in grey levels
    period: float
    angle: float
    grid: tuple[float, ...]  # 25 numbers in [-1, 1], the lattice of a cloudy background


class Scene(NamedTuple):
    """Groups from the foremost (the labelled one) to the hindmost, on clutter, on a background."""

    groups: tuple[Group, ...]
    bits: tuple[Bit, ...]
    background: Background
    style: str
    label: int
