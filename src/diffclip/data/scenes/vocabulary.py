"""What a scene can hold and what it is called: shapes, colours, textures, and the classes made of them.

The vocabulary is small on purpose: a model with a million parameters has to learn it from 100,000 scenes.
No colour's name starts with a vowel, so that the templates' "a {c}" is always English.
"""

from __future__ import annotations

RGB = tuple[int, int, int]

SHAPES = (
    "circle",
    "square",
    "triangle",
    "star",
    "heart",
    "cross",
    "ring",
    "moon",
    "arrow",
    "hexagon",
    "bolt",
    "box",
)
COLOURS: dict[str, RGB] = {
    "red": (214, 38, 42),
    "yellow": (245, 208, 38),
    "green": (44, 160, 62),
    "blue": (40, 84, 214),
    "purple": (130, 48, 176),
    "pink": (246, 128, 184),
    "white": (246, 246, 244),
    "black": (22, 22, 26),
}
TEXTURES = ("solid", "striped", "dotted", "checkered", "outlined")
BACKGROUND_LEVELS: dict[str, int] = {"dark": 52, "grey": 126, "light": 200}
BACKGROUND_TEXTURES = ("plain", "striped", "dotted", "checkered", "cloudy", "shaded")
LETTERS = ("A", "E", "L", "T", "V", "X")
DIRECTIONS: dict[str, float] = {"right": 0.0, "down": 90.0, "left": 180.0, "up": 270.0}  # degrees, clockwise
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}

SIGN = "sign"  # carries a letter; never the labelled object
CLASSES: tuple[tuple[str, str], ...] = tuple((colour, shape) for shape in SHAPES for colour in COLOURS)
CLASSNAMES: tuple[str, ...] = tuple(f"{colour} {shape}" for colour, shape in CLASSES)
CLASS_INDEX = {pair: index for index, pair in enumerate(CLASSES)}
TEMPLATES = ("a {c}", "a picture of a {c}", "a drawing of a {c}", "there is a {c}", "look at a {c}")

# One colour of every shape is never drawn in training: each colour is missing from one or two shapes.
HELD_OUT: tuple[int, ...] = tuple(
    CLASS_INDEX[tuple(COLOURS)[(5 * index + 2) % len(COLOURS)], shape] for index, shape in enumerate(SHAPES)
)
SEEN: tuple[int, ...] = tuple(index for index in range(len(CLASSES)) if index not in HELD_OUT)


def plural(noun: str) -> str:
    return noun + ("es" if noun.endswith(("s", "x")) else "s")


def luminance(rgb: RGB) -> float:
    """Brightness of a colour, 0 to 255 (Rec. 601 weights)."""
    return 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]
