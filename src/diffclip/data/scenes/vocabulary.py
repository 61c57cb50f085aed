"""The words of scenes: shapes, colours, textures, and the classes made of them.

The vocabulary is small on purpose: a model with a million parameters has to learn it from 100,000 scenes.
No object's colour starts with a vowel, so that the templates' "a {c}" is always English.
"""

from __future__ import annotations

RGB = tuple[int, int, int]

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "moon", "bolt")
ARROW, BOX, SIGN = "arrow", "box", "sign"
PROPS = (ARROW, BOX, SIGN)  # drawn beside the labelled shape, never labelled themselves
COLOURS: dict[str, RGB] = {
    "red": (226, 44, 48),
    "yellow": (246, 212, 44),
    "green": (52, 186, 76),
    "cyan": (56, 214, 222),
    "blue": (52, 104, 238),
    "purple": (152, 62, 208),
    "pink": (250, 134, 192),
    "white": (246, 246, 244),
}
# Grounds are darker than every colour: figure and ground differ alike in every scene, which small models learn soon.
GROUNDS: dict[str, RGB] = {
    "black": (22, 22, 24),
    "grey": (58, 58, 58),
    "brown": (66, 44, 28),
    "navy": (26, 32, 68),
}
TEXTURES = ("solid", "striped", "dotted", "checkered", "outlined")
GROUND_TEXTURES = ("plain", "striped", "dotted", "checkered", "cloudy", "shaded")
LETTERS = ("A", "E", "L", "T", "V", "X")
DIRECTIONS: dict[str, float] = {"right": 0.0, "down": 90.0, "left": 180.0, "up": 270.0}  # degrees, clockwise
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}

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
