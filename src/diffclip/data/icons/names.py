"""What an icon's name says: the thing, apart from the style it is drawn in, its size and its number"""

from __future__ import annotations

import re
from collections.abc import Callable, Set
from dataclasses import dataclass

STYLES = {
    "baseline": "", "bold": "bold", "broken": "broken line", "color": "colour", "duo": "duotone", "duotone": "duotone",
    "fill": "filled", "filled": "filled", "flat": "flat", "light": "light", "line": "outline", "linear": "outline",
    "outline": "outline", "outlined": "outline", "pop": "", "print": "", "regular": "", "remix": "", "round": "rounded",
    "rounded": "rounded", "sharp": "sharp", "solid": "filled", "stroke": "outline", "thin": "thin",
    "twotone": "duotone",
}  # fmt: skip
"""Words that may say how an icon is drawn, and what a caption calls it."""
TITLES = {
    "color": "colour", "cyber": "angular", "doodle": "hand-drawn", "emoji": "emoji", "freehand": "hand-drawn",
    "light": "light", "pencil": "pencil", "pixel": "pixel", "plump": "plump", "poly": "polygon", "sharp": "sharp",
    "stickies": "sticker", "memory": "pixel", "dinkie": "pixel", "openmoji": "emoji", "noto": "emoji",
    "twemoji": "emoji", "emojis": "emoji", "emojione": "emoji", "game": "silhouette",
}  # fmt: skip
"""Words of a set's prefix and title that say how all of its icons are drawn."""
_NUMBER = re.compile(r"\d{1,3}(px)?")


@dataclass(frozen=True)
class Name:
    """An icon's name, taken apart."""

    words: tuple[str, ...]
    """The thing."""
    styles: tuple[str, ...]
    """How it is drawn, as captions call it."""
    number: str = ""
    """The number at its end, which tells sizes or drawings of one thing apart."""

    @property
    def key(self) -> str:
        """The same for all names of the same words in any order: what splits are made of."""
        return " ".join(sorted(self.words))

    def __str__(self) -> str:
        return " ".join(self.words)


def taken_apart(name: str, others: Set[str]) -> Name:
    """A name among all names of its set, which `plain` made.

    A first or last word is a style where the set has the same name without it, or with another style in its place.
    So `traffic-light` stays whole, and `heart-light` does not in a set that has `heart-bold`.
    """
    words, styles, number = plain(name).split("-"), list[str](), ""
    changed = True
    while changed and len(words) > 1:
        changed = False
        for at, rest in ((-1, words[:-1]), (0, words[1:])):
            word = words[at]
            if at == -1 and _NUMBER.fullmatch(word):
                number, words, changed = number or word, rest, True
                break
            if word in STYLES and _is_style(word, at, rest, styles, number, others):
                styles.append(word)
                words, changed = rest, True
                break
    called = dict.fromkeys(STYLES[word] for word in reversed(styles) if STYLES[word])
    return Name(tuple(words), tuple(called), number)


def _is_style(word: str, at: int, rest: list[str], taken: list[str], number: str, others: Set[str]) -> bool:
    if taken or number or rest[at] in STYLES:  # a style beside another style or before a size is one
        return True
    place: Callable[[str], str] = (
        (lambda style: "-".join([*rest, style])) if at == -1 else (lambda style: "-".join([style, *rest]))
    )
    return "-".join(rest) in others or any(place(style) in others for style in STYLES if style != word)


def plain(name: str) -> str:
    """A name as `taken_apart` compares it: lower case, one word for two-tone, no empty words."""
    return re.sub(r"[-_.\s]+", "-", name.lower().replace("two-tone", "twotone")).strip("-")


def style_of_set(prefix: str, title: str, strokes: bool, multicoloured: bool) -> tuple[str, ...]:
    """How all icons of a set are drawn, as far as the set says."""
    words = re.findall(r"[a-z]+", f"{prefix} {title}".lower())
    found = [TITLES[word] for word in words if word in TITLES]
    found += ["line"] if strokes and not found else []
    found += ["colour"] if multicoloured else []
    return tuple(dict.fromkeys(found))
