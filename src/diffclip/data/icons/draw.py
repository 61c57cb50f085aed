"""Draw an icon: colours, ground and margin by a draw of its own, pixels by resvg"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from random import Random
from types import ModuleType

from diffclip.errors import UserError

SIZE = 64
COLOURS = {
    "black": "#111111", "white": "#fafafa", "grey": "#808488", "red": "#d62828", "orange": "#f3860d",
    "yellow": "#f7d117", "green": "#2a9d4a", "teal": "#148f8a", "blue": "#1f62d0", "purple": "#7b3fb5",
    "pink": "#ee6fa8", "brown": "#7a4a21", "beige": "#efe3c8", "light blue": "#c3def7",
    "light green": "#cdeccb", "navy": "#14264f",
}  # fmt: skip
GROUNDS = ("white", "white", "beige", "light blue", "light green", "grey")
"""Behind icons that bring their own colours, of which most are made for a light page."""
CONTRAST = 3.0
"""The least ratio of luminances, as the WCAG ask for graphics."""
MARGIN = 0.15
"""Of the width that an icon may lose to its sides, at most."""


@dataclass(frozen=True)
class Look:
    """How one icon is coloured."""

    colour: str
    ground: str
    margin: float


def look(random: Random, multicoloured: bool) -> Look:
    """A colour and a ground that differ enough, and a margin."""
    margin = round(random.uniform(0, MARGIN), 3)
    if multicoloured:
        return Look("black", random.choice(GROUNDS), margin)
    ground = random.choice(list(COLOURS))
    return Look(random.choice([name for name in COLOURS if contrast(name, ground) >= CONTRAST]), ground, margin)


def contrast(one: str, other: str) -> float:
    """The ratio of two colours' relative luminances, from 1 to 21 (WCAG 2)."""
    dark, light = sorted((_luminance(COLOURS[one]), _luminance(COLOURS[other])))
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def svg(body: str, box: tuple[float, float, float, float], how: Look) -> str:
    """The picture of an icon, square, with the icon in its middle."""
    left, top, width, height = box
    side = max(width, height) * (1 + how.margin)
    view = f"{left - (side - width) / 2:g} {top - (side - height) / 2:g} {side:g} {side:g}"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{SIZE}" height="{SIZE}" viewBox="{view}" color="{COLOURS[how.colour]}">{body}</svg>'
    )


def png(picture: str, how: Look) -> bytes:
    """The pixels of a picture, as a file. Raises ValueError where it cannot be drawn, UserError without resvg."""
    resvg_py = renderer()
    drawn: bytes = resvg_py.svg_to_bytes(
        svg_string=picture, width=SIZE, height=SIZE, background=COLOURS[how.ground], skip_system_fonts=True
    )
    return drawn


def renderer() -> ModuleType:
    """The library that draws. Raises UserError where it is not installed."""
    try:
        return import_module("resvg_py")
    except ImportError:
        raise UserError("icons are drawn by resvg: pip install 'diffclip[icons]'") from None
