"""`diffclip data show`: some examples of a data set on one sheet, with their captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from diffclip import durable
from diffclip.data.images import BadImage, decode
from diffclip.data.sources import Source, captions_of
from diffclip.data.transforms import shrunk
from diffclip.errors import UserError
from diffclip.terminal import Terminal
from diffclip.text import printable

TILE, GAP, TEXT, LINES = 224, 16, 13, 4  # pixels; lines of a caption
LINE = TEXT + 5
INK, QUIET, WRONG = (30, 30, 30), (120, 120, 120), (176, 30, 30)
PAPER, MISSING = (255, 255, 255), (225, 225, 225)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


@dataclass(frozen=True)
class _Tile:
    """What is shown of one example; without pixels, why there are none."""

    pixels: NDArray[np.uint8] | None
    facts: str
    lines: list[str]
    usable: bool = True


def sheet(source: Source, indices: Sequence[int], columns: int = 6) -> Image.Image:
    """The examples with these indices, row by row. One that cannot be used is a grey tile that says why."""
    columns = max(1, min(columns, len(indices)))
    tiles = [_tile(source, index) for index in indices]
    rows = [tiles[at : at + columns] for at in range(0, len(tiles), columns)]
    heights = [TILE + LINE * (1 + max(len(tile.lines) for tile in row)) + GAP for row in rows]
    page = Image.new("RGB", (GAP + columns * (TILE + GAP), 2 * GAP + LINE + sum(heights)), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text(
        (GAP, GAP), printable(f"{source.name}: {len(indices):,} of {len(source):,} examples"), INK, _font(TEXT + 2)
    )
    top = 2 * GAP + LINE
    for row, height in zip(rows, heights, strict=True):
        for place, tile in enumerate(row):
            _draw(page, draw, tile, GAP + place * (TILE + GAP), top)
        top += height
    return page


def _tile(source: Source, index: int) -> _Tile:
    try:
        example = source[index]
        pixels = decode(example.image)
    except BadImage as bad:
        return _Tile(None, str(index), [bad.reason], usable=False)
    label = "" if example.label is None else f" · class {example.label}"
    facts = f"{index} · {pixels.shape[1]}×{pixels.shape[0]}{label}"
    try:
        captions = captions_of(source, example)
    except UserError:  # labels without names
        captions = ()
    usable = bool(captions) or example.label is not None
    return _Tile(shrunk(pixels, 4 * TILE), facts, _wrapped(captions) if captions or not usable else [], usable)


def _draw(page: Image.Image, draw: ImageDraw.ImageDraw, tile: _Tile, left: int, top: int) -> None:
    if tile.pixels is None:
        draw.rectangle((left, top, left + TILE - 1, top + TILE - 1), MISSING)
    else:
        height, width = tile.pixels.shape[:2]
        scale = TILE / max(height, width)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        # Small images are enlarged in whole pixels, so that what is seen is what there is.
        way = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
        page.paste(Image.fromarray(tile.pixels).resize(size, way), (left, top + TILE - size[1]))
    draw.text((left, top + TILE + 3), tile.facts, QUIET, _font(TEXT - 2))
    for number, line in enumerate(tile.lines, 1):
        draw.text((left, top + TILE + 3 + number * LINE), line, INK if tile.usable else WRONG, _font(TEXT))


def _wrapped(captions: Sequence[str]) -> list[str]:
    """The first caption, and how many others there are, in lines of a tile's width."""
    more = f" (+{len(captions) - 1})" if len(captions) > 1 else ""
    rest = printable(" ".join((captions[0] if captions else "no caption").split())[:1000]) + more
    lines: list[str] = []
    while rest and len(lines) < LINES:
        cut = len(rest)
        while _font(TEXT).getlength(rest[:cut]) > TILE:
            space = rest.rfind(" ", 0, cut)
            cut = space if space > 0 else cut - 1
        lines.append(rest[:cut])
        rest = rest[cut:].strip()
    if rest:
        lines[-1] = lines[-1][:-1].rstrip() + "…"
    return lines


def show(source: Source, out: Path, *, count: int, columns: int, seed: int) -> None:
    """Write the sheet of a random choice of examples as PNG.

    Raises UserError where the file is no PNG or cannot be written.
    """
    if out.suffix.lower() != ".png":
        raise UserError(f"{out}: the sheet is a PNG file: give a name that ends in .png")
    chosen = np.random.default_rng(seed).permutation(len(source))[:count]
    page = sheet(source, np.sort(chosen).tolist(), columns)
    with durable.writing(out) as unfinished:
        page.save(unfinished, "PNG")
    Terminal().print(
        f"{out}: {len(chosen)} of {len(source):,} examples of {source.name}", highlight=False, soft_wrap=True
    )
