"""Captions of a scene: true of it, in varied words.

A caption is built of noun phrases ("two small striped red stars"), of relations between groups that hold with
a margin, and of what the background is like. Attributes are left out at random, never made up; what is said
of a group holds for all its things.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from random import Random

from diffclip.data.scenes.sample import SOLID_MIDDLE, pick
from diffclip.data.scenes.scene import Background, Group, Scene, Thing
from diffclip.data.scenes.vocabulary import ARROW, BOX, DIRECTIONS, NUMBERS, SIGN, TEXTURES, plural

BIG, SMALL = 0.19, 0.11  # radii from which, and up to which, a thing is called so
APART = 0.1  # the least distance, in frames, of what is called left of, above, … another
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_WORDINGS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
_OPENINGS = ("", "", "", "a picture of ", "a drawing of ", "an image of ", "look at ", "there is ")


def captions(scene: Scene, random: Random, kinds: tuple[str, ...]) -> tuple[str, ...]:
    """One caption for each of `kinds`.

    "class" says colour and shape of the labelled group, "focus" more of it, "pair" names a second group too,
    and "full" names every group.
    """
    return tuple(_caption(scene, random, kind) for kind in kinds)


def _caption(scene: Scene, random: Random, kind: str) -> str:
    main = scene.groups[0]
    if kind == "class":
        return _open(random, main, noun_phrase(main, random, 0.0))
    detail = 0.9 if kind == "full" else 0.7
    ground = _ground(scene.background, random) if random.random() < (0.8 if kind == "full" else 0.25) else ""
    if kind == "focus" or len(scene.groups) == 1:
        where = _position(main) if random.random() < (0.7 if kind == "full" else 0.25) else ""
        return _open(random, main, noun_phrase(main, random, detail) + where + ground)
    text, first = _related(main, scene.groups[1], random, detail)
    if kind == "full" and len(scene.groups) > 2:
        rest = " and ".join(noun_phrase(group, random, detail) for group in scene.groups[2:])
        return f"{text}, and {rest}{ground}"
    return _open(random, first, text + ground)


def _open(random: Random, first: Group | None, text: str) -> str:
    """Put an opening before a text that names the group `first` first; None: it starts otherwise."""
    if first is None:
        return text
    opening = pick(random, _OPENINGS)
    return ("there are " if opening == "there is " and len(first.things) > 1 else opening) + text


def _related(a: Group, b: Group, random: Random, detail: float) -> tuple[str, Group | None]:
    """Two groups and a relation that holds; and the group that an opening can be put before, if any."""
    how = relation(a, b)
    if random.random() < 0.4:
        a, b, how = b, a, how and OPPOSITE[how]
    one, two = noun_phrase(a, random, detail), noun_phrase(b, random, detail)
    if how is None or random.random() < 0.2:
        return f"{one} and {two}", a
    wording = pick(random, _WORDINGS[how])
    order = random.random()
    several = len(a.things) > 1
    if order < 0.6:
        return f"{one} {wording} {two}", a
    if order < 0.8:
        verb = pick(random, ("are", "sit", "lie") if several else ("is", "sits", "lies"))
        return f"{one} {verb} {wording} {two}", None
    return f"{wording} {two} there {'are' if several else 'is'} {one}", None


def relation(a: Group, b: Group) -> str | None:
    """Where a lies, seen from b: "left of", "right of", "above" or "below"; None where none is clear."""
    dx, dy = b.centre[0] - a.centre[0], b.centre[1] - a.centre[1]
    if abs(dx) > 1.2 * abs(dy):
        how, here, there = "left of", [thing.x for thing in a.things], [thing.x for thing in b.things]
    elif abs(dy) > 1.2 * abs(dx):
        how, here, there = "above", [thing.y for thing in a.things], [thing.y for thing in b.things]
    else:
        return None
    if min(there) - max(here) >= APART:
        return how
    return OPPOSITE[how] if min(here) - max(there) >= APART else None


def noun_phrase(group: Group, random: Random, detail: float) -> str:
    """Name a group, each of its attributes with probability `detail`; what is usual is said seldom."""
    said = {
        attribute
        for attribute in _ATTRIBUTES
        if random.random() < (detail if _striking(group.kind, attribute) else 0.15 * detail)
    }
    return name(group.kind, len(group.things), said)


def _striking(kind: Thing, attribute: str) -> bool:
    if attribute == "condition":
        return kind.broken or kind.shape == BOX
    return kind.dot if attribute == "dot" else True


def name(kind: Thing, count: int = 1, said: Collection[str] = ()) -> str:
    """The noun phrase of `count` things, saying what `said` names: size, condition, texture, pose, dot."""
    words = [_WORDS[attribute](kind) for attribute in ("size", "condition", "texture") if attribute in said]
    words += [kind.colour, plural(kind.shape) if count > 1 else kind.shape]
    noun = " ".join(filter(None, words))
    noun = f"{NUMBERS[count]} {noun}" if count > 1 else article(noun)
    return noun + "".join(_WORDS[attribute](kind) for attribute in ("pose", "dot") if attribute in said)


def article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def _size(kind: Thing) -> str:
    return "big" if kind.radius >= BIG else "small" if kind.radius <= SMALL else ""


def _condition(kind: Thing) -> str:
    if kind.shape == BOX:
        return "open" if kind.open else "closed"
    if kind.shape == SIGN or kind.texture != "solid":
        return ""
    return "broken" if kind.broken else "whole"


def _texture(kind: Thing) -> str:
    return "" if kind.texture == "solid" else kind.texture


def _pose(kind: Thing) -> str:
    if kind.shape == ARROW:
        turn = min(DIRECTIONS, key=lambda word: 1 - math.cos(math.radians(kind.angle - DIRECTIONS[word])))
        return f" pointing {turn}"
    if kind.shape == BOX:
        return " seen from above" if kind.above else " seen from the side"
    if kind.shape == "moon":
        return " facing right" if math.cos(math.radians(kind.angle)) > 0 else " facing left"
    return f" with the letter {kind.letter}" if kind.shape == SIGN else ""


def _dot(kind: Thing) -> str:
    if kind.shape not in SOLID_MIDDLE or kind.texture != "solid" or kind.broken:
        return ""
    return " with a dot" if kind.dot else " without a dot"


_WORDS = {"size": _size, "condition": _condition, "texture": _texture, "pose": _pose, "dot": _dot}
_ATTRIBUTES = tuple(_WORDS)


def _position(group: Group) -> str:
    """Where in the frame a group of one lies, where that is clear."""
    if len(group.things) > 1:
        return ""
    x, y = group.centre
    if abs(x - 0.5) < 0.06 and abs(y - 0.5) < 0.06:
        return " in the middle"
    across = "left" if x < 0.4 else "right" if x > 0.6 else ""
    down = "top" if y < 0.4 else "bottom" if y > 0.6 else ""
    if across and down:
        return f" at the {down} {across}"
    return f" on the {across}" if across else f" at the {down}" if down else ""


def _ground(background: Background, random: Random) -> str:
    texture = background.texture if background.texture in TEXTURES and random.random() < 0.7 else ""
    return f" on a {background.ground} {texture} background".replace("  ", " ")
