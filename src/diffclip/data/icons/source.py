"""Icons as a source of examples: each drawn when it is asked for, the same each time"""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from random import Random

import numpy as np

from diffclip.data.example import Example
from diffclip.data.formats.stamp import stamp_of
from diffclip.data.icons.choose import Choice, Icon
from diffclip.data.icons.draw import look, png, renderer, svg
from diffclip.data.images import BadImage, decode

SPLITS = {"train": "train", "heldout": "val", "unseen": "test"}
"""The splits, and their folders: names by which no reader of the whole folder takes all for one."""
TEMPLATES = ("{c}", "an icon of {c}", "{c} icon")
DRAWN = 1
"""Counts the ways in which the same package, seed and resvg gave pictures and captions: part of the stamp."""
BLANK = 4.0
"""Standard deviation of the pixels' values below which nothing is to be seen."""
_SAYS = ("{name}, {style} icon", "{style} icon of {name}", "{name} in {style} style", "{a_style} {name}")
_COLOURED = (
    "{name} in {colour} on {ground}",
    "{a_colour} {name} on {a_ground} background",
    "{colour} {name} on {ground}",
)


class IconSource:
    """The icons of a split, with captions; those of unseen sets with a class. Raises UserError without resvg."""

    def __init__(self, choice: Choice, split: str, seed: int, digest: str) -> None:
        renderer()
        self.name = f"icons/{SPLITS[split]}"
        self.split, self.seed, self._digest = split, seed, digest
        self._icons: tuple[Icon, ...] = getattr(choice, split)
        self._labels = choice.labels if split == "unseen" else None
        self.classnames = choice.classnames if split == "unseen" else None
        self.templates: tuple[str, ...] | None = TEMPLATES if split == "unseen" else None

    def __len__(self) -> int:
        return len(self._icons)

    def __getitem__(self, index: int) -> Example:
        icon = self._icons[index]
        random = Random(hashlib.blake2b(f"{self.seed} {icon.icons.prefix} {icon.name}".encode()).digest())
        how = look(random, icon.icons.multicoloured)
        try:
            image = png(svg(icon.body, icon.box, how), how)
        except ValueError:
            raise BadImage("cannot_be_drawn") from None
        if float(np.std(decode(image), axis=(0, 1)).max()) < BLANK:
            raise BadImage("blank")
        if self._labels is not None:
            return Example(image, (), self._labels[index])
        if self.split == "heldout":
            return Example(image, (str(icon.says),))
        return Example(image, captions(icon, how.colour, how.ground, random))

    def about(self, index: int) -> dict[str, str]:
        """Where an icon is from, and who allows what with it."""
        icon = self._icons[index]
        made = icon.icons
        return {
            "set": made.prefix,
            "icon": icon.name,
            "title": made.title,
            "author": made.author,
            "author_url": made.author_url,
            "licence": made.licence,
            "licence_url": made.licence_url,
        }

    def place(self, index: int) -> str:
        return f"{self._icons[index].icons.prefix}:{self._icons[index].name}"

    def stamp(self) -> str:
        return stamp_of([], DRAWN, self._digest, self.split, self.seed, len(self), version("resvg-py"))


def captions(icon: Icon, colour: str, ground: str, random: Random) -> tuple[str, ...]:
    """Captions of an icon: its name, its name with its style, with its colours, its other names, its categories."""
    name = str(icon.says)
    said = [random.choice((name, f"an icon of {name}", f"{name} icon"))]
    style = " ".join(icon.styles)
    if style:
        said.append(random.choice(_SAYS).format(name=name, style=style, a_style=_with_article(style)))
    if icon.icons.multicoloured:
        said.append(f"{name} on {ground}")
    else:
        words = {"colour": colour, "ground": ground}
        words |= {f"a_{key}": _with_article(word) for key, word in words.items()}
        said.append(random.choice(_COLOURED).format(name=name, **words))
    said += [f"an icon of {other}" for other in icon.also[:2]]
    said += [f"{name}, {category.lower()}" for category in icon.icons.categories.get(icon.name, ())[:1] if category]
    return tuple(dict.fromkeys(said))


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeio' else 'a'} {words}"
