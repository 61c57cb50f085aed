"""Colours that stand out from their ground: what WCAG 2 asks of text, 4.5 to 1, of every line and bar of a page."""

import re

ENOUGH = 4.5
GROUNDS = {"light": "#f6f7f9", "dark": "#1a2029"}
"""Behind a figure of the page, by colour scheme: `--surface` in page.css."""
PAINT = re.compile(r"((?:fill|stroke): )#([0-9a-f]{6})(?=[;\"])")
USED = re.compile(r"var\(--c([0-9a-f]{6}),")


def contrast(one: str, other: str) -> float:
    """The ratio of two colours, #rrggbb, by WCAG 2: 1 to 21."""
    bright, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def legible(colour: str, ground: str, ratio: float = ENOUGH) -> str:
    """The colour, mixed with so much black or white that it has the ratio to the ground."""
    towards = (0, 0, 0) if _luminance(ground) > 0.18 else (255, 255, 255)
    channels = _channels(colour)
    for share in range(101):
        mixed = (round(c + (t - c) * share / 100) for c, t in zip(channels, towards, strict=True))
        found = "#" + "".join(f"{channel:02x}" for channel in mixed)
        if contrast(found, ground) >= ratio:
            return found
    return found


def by_variable(svg: str) -> str:
    """An SVG whose colours are variables of the page, each with itself as what it is without the page."""
    return PAINT.sub(lambda match: f"{match[1]}var(--c{match[2]}, #{match[2]})", svg)


def variables(page: str) -> str:
    """The style sheet's rules for the variables that a page uses: legible on a light ground, and on a dark one."""
    used = sorted(set(USED.findall(page)))
    light, dark = (
        " ".join(f"--c{colour}: {legible('#' + colour, ground)};" for colour in used) for ground in GROUNDS.values()
    )
    return f":root {{ {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}" if used else ""


def _channels(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[place : place + 2], 16) for place in (1, 3, 5))


def _luminance(colour: str) -> float:
    parts = (channel / 255 for channel in _channels(colour))
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
