"""Reads a caption back and says whether it is true of a scene, without any of the code that wrote it."""

import re

import numpy as np

COLOURS = "red|yellow|green|cyan|blue|purple|pink|white"
SHAPES = "circle|square|triangle|star|heart|cross|ring|moon|bolt|arrow|box|sign"
NUMBERS = {"a": 1, "an": 1, "two": 2, "three": 3, "four": 4}
NOUN = re.compile(
    rf"(?P<number>an?|two|three|four) (?:(?P<size>big|small) )?(?:(?P<condition>broken|whole|open|closed) )?"
    rf"(?:(?P<texture>striped|dotted|checkered|outlined) )?(?P<colour>{COLOURS}) (?P<shape>{SHAPES})(?P<plural>es|s)?"
    r"(?: pointing (?P<pointing>left|right|up|down)| facing (?P<facing>left|right)"
    r"| seen from (?P<view>above|the side)| with the letter (?P<letter>[A-Z]))?"
    r"(?: (?P<dot>with|without) a dot)?"
)
NOUN_TEXT = re.sub(r"\?P<\w+>", "?:", NOUN.pattern)
OPENING = re.compile(r"^(?:a picture of |a drawing of |an image of |look at |there is (?=an? )|there are (?!an? ))")
GROUND = re.compile(r" on a (black|grey|brown|navy)(?: (striped|dotted|checkered))? background$")
PLACE = r" (in the middle|at the (?:top|bottom)(?: left| right)?|on the (?:left|right))"
HOW = r"(?:to the )?(left of|right of)|(above|over)|(below|under)"
REST = re.compile(rf", and ({NOUN_TEXT}(?: and {NOUN_TEXT})*)$")
VERB = r"(?: (?:is|sits|lies|are|sit|lie))?"


def true_of(caption, scene):
    """Whether the caption holds; ValueError if it cannot be read."""
    text = OPENING.sub("", caption)
    facts = []
    if found := GROUND.search(text):
        background = scene.background
        facts.append(found[1] == background.ground and found[2] in (None, background.texture))
        text = text[: found.start()]
    if found := REST.search(text):
        facts += [find(noun[0], scene) is not None for noun in re.finditer(NOUN_TEXT, found[1])]
        text = text[: found.start()]
    return all(facts) and body(text, scene)


def body(text, scene):
    if found := re.fullmatch(rf"({NOUN_TEXT})(?:{PLACE})?", text):
        group = find(found[1], scene)
        return group is not None and (found[2] is None or placed(group, found[2]))
    if found := re.fullmatch(rf"({NOUN_TEXT}) and ({NOUN_TEXT})", text):
        return find(found[1], scene) is not None and find(found[2], scene) is not None
    if found := re.fullmatch(rf"({NOUN_TEXT}){VERB} (?:{HOW}) ({NOUN_TEXT})", text):
        first, second, how = found[1], found[5], found[2] or found[3] or found[4]
    elif found := re.fullmatch(rf"(?:{HOW}) ({NOUN_TEXT}) there (?:is|are) ({NOUN_TEXT})", text):
        first, second, how = found[5], found[4], found[1] or found[2] or found[3]
    else:
        raise ValueError(f"cannot read {text!r}")
    a, b = find(first, scene), find(second, scene)
    return a is not None and b is not None and related(a, how, b)


def find(text, scene):
    """The group that a noun phrase describes; None if there is none. English is checked on the way."""
    noun = NOUN.fullmatch(text)
    assert noun, text
    number = NUMBERS[noun["number"]]
    assert (noun["plural"] is not None) == (number > 1), text
    if noun["plural"]:
        assert noun["plural"] == ("es" if noun["shape"] in ("cross", "box") else "s"), text
    if noun["number"] in ("a", "an"):
        assert (noun["number"] == "an") == (text.split()[1][0] in "aeiou"), text
    fitting = [group for group in scene.groups if len(group.things) == number and fits(noun, group.things)]
    assert len(fitting) < 2, f"{text!r} is ambiguous"
    return fitting[0] if fitting else None


def fits(noun, things):
    return all(
        noun["colour"] == thing.colour
        and noun["shape"] == thing.shape
        and noun["size"] in (None, "big" if thing.radius >= 0.19 else "small" if thing.radius <= 0.11 else "")
        and noun["condition"] in (None, condition(thing))
        and noun["texture"] in (None, thing.texture)
        and noun["pointing"] in (None, thing.shape == "arrow" and quadrant(thing.angle))
        and noun["facing"] in (None, thing.shape == "moon" and quadrant(thing.angle))
        and noun["view"] in (None, thing.shape == "box" and ("above" if thing.above else "the side"))
        and noun["letter"] in (None, thing.letter)
        and noun["dot"] in (None, "with" if thing.dot else "without")
        for thing in things
    )


def condition(thing):
    if thing.shape == "box":
        return "open" if thing.open else "closed"
    return "broken" if thing.broken else "whole"


def quadrant(angle):
    return ("right", "down", "left", "up")[round(angle / 90) % 4]


def placed(group, place):
    (thing,) = group.things
    words = place.split()
    if "middle" in words:
        return abs(thing.x - 0.5) < 0.1 and abs(thing.y - 0.5) < 0.1
    wanted = {"left": thing.x < 0.42, "right": thing.x > 0.58, "top": thing.y < 0.42, "bottom": thing.y > 0.58}
    return all(wanted[word] for word in words if word in wanted)


def related(a, how, b):
    """Whether all of a lies on that side of all of b, and more so than it lies above, below or beside it."""
    first, second = (np.array([(thing.x, thing.y) for thing in group.things]) for group in (a, b))
    axis, sign = {
        "left of": (0, 1), "right of": (0, -1), "above": (1, 1), "over": (1, 1), "below": (1, -1), "under": (1, -1)
    }[how]  # fmt: skip
    step = second.mean(axis=0) - first.mean(axis=0)
    beyond = (second[:, None, axis] - first[None, :, axis]) * sign
    return bool((beyond > 0.09).all() and step[axis] * sign > abs(step[1 - axis]))
